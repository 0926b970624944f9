"""Writes the pages of shipped optimizers, and tables of them, from their cards.

    python scripts/docs/card_pages.py          # writes docs/cards/, and between markers
    python scripts/docs/card_pages.py --check  # exit status 1 if a page is out of date

Between `<!-- cards: KIND -->` and `<!-- end -->` of a page stands the table of that
kind. Numbers stand in the cards and in two tables of docs/data, which
`scripts/recipes/renew_cards.py` and `scripts/benchmarks/shipped_updates.py` write.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import l2o

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/pretrained.md", "docs/evaluation.md", "docs/performance.md")
LEADERBOARD = ROOT / "docs" / "data" / "heldout_small.csv"
COSTS = ROOT / "docs" / "data" / "update_costs.csv"
SHARES = ("share_1k", "share_8k", "share_64k")
MARKED = re.compile(r"(<!-- cards: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# The order in which a reader meets them.
ORDER = (
    *("adaptive_muon", "muon_fast", "muon_mixed", "muon_any_rate"),
    *("normalized_orthogonal", "normalized_mixed", "small_fc_mixed", "small_fc_digits"),
)
# What the README shows of them.
FRONT = {
    "adaptive_muon": "Muon's steps, adaptive sizes; people chose its 15 numbers",
    "muon_fast": "the same rule; its numbers were meta-trained",
    "small_fc_mixed": "a meta-trained network of 197 weights, no matrix products",
}
BASELINES = {"muon+cosine": "Muon with a cosine", "adamw+cosine": "AdamW with a cosine"}
NEEDS = {"params": "parameters", "value": "the loss", "num_steps": "number of steps"}


def interval(values: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*values)


def result_row(result: Mapping[str, Any]) -> str:
    better, of = result["better_than_tuned_adam"]
    cells = (
        f"`{result['suite']}`, {result['steps']:,} steps, {result['seeds']} seeds",
        result["tuning"],
        interval(result["score"]),
        interval(result["speed_up"]),
        f"{better} of {of} (p = {result['p']})",
        "{} of {} runs".format(*result["diverged"]),
    )
    return f"| {' | '.join(cells)} |"


def has_horizon(optimizer: l2o.LearnedOptimizer) -> bool:
    """Whether it is told the length of the run, even if it can do without."""
    theta = optimizer.init_theta(jax.random.key(0))
    state = optimizer.bind(theta, num_steps=1000).init({"w": jnp.ones((2, 2))})
    return bool(jnp.isfinite(l2o.steps_left(state)))


def page(name: str) -> str:
    """The page of one optimizer, from its card."""
    content = l2o.read_card(name)
    card, optimizer = content["card"], content["optimizer"]
    (row,) = [x for x in l2o.available() if x.name == name]
    needs = [NEEDS[x] for x in row.needs if x in NEEDS]
    steps = ", num_steps=1000" if has_horizon(row.optimizer) else ""
    hours = card["seconds"] / 3600
    took = f"{hours:.1f} hours" if hours > 1 else f"{60 * hours:.0f} minutes"
    lines = [
        f"# `{name}`",
        "",
        card["summary"],
        "",
        "```python",
        f'tx = l2o.load("{name}"{steps})',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | `l2o.{optimizer['name']}` |",
        f"| meta-parameters | {content['meta_parameters']:,} |",
        f"| state | {row.state_bytes:.0f} bytes per parameter of a matrix |",
        f"| `update` and `load` need | {', '.join(needs)} |",
        f"| made by | {card['made']} |",
        f"| cost of making it | {card['inner_steps'] / 1e6:.1f} million inner steps, "
        f"{took} on two CPU cores |",
        "",
        "## Results",
        "",
        "| tasks | tuning | score | speed-up | better than tuned Adam | diverged |",
        "|---|---|---|---|---|---|",
        *map(result_row, card["results"]),
        "",
        "Adam has the best of seven learning rates per task. "
        "[What score and speed-up mean](../evaluation.md).",
        "",
        "## Where it fails",
        "",
        *(f"- {failure}" for failure in card["known_failures"]),
        "",
    ]
    return "\n".join(lines)


def untuned(name: str) -> Mapping[str, Any]:
    """The result of a card with nothing tuned."""
    results = l2o.read_card(name)["card"]["results"]
    return next(x for x in results if x["tuning"] == "none")


def evidence(link: str) -> list[str]:
    """What the shipped optimizers reach with nothing tuned."""
    lines = [
        "| nothing tuned | speed-up | score | better than tuned Adam on |",
        "|---|---|---|---|",
    ]
    for name in ORDER:
        result = untuned(name)
        better, of = result["better_than_tuned_adam"]
        lines.append(
            f"| [`{name}`]({link}cards/{name}.md) | {interval(result['speed_up'])} | "
            f"{interval(result['score'])} | {better} of {of} tasks |"
        )
    return lines


def number(text: str) -> str:
    """Two digits, or as many as stand before the point."""
    value = float(text)
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(row: Mapping[str, str], quantity: str) -> str:
    names = (quantity, f"{quantity}_low", f"{quantity}_high")
    return interval([float(row[x]) for x in names])


def front(link: str) -> list[str]:
    """A few shipped optimizers, and the best baselines."""
    lines = [
        "| optimizer | tuning | speed-up | better than tuned Adam on |",
        "|---|---|---|---|",
    ]
    for row in rows_of(LEADERBOARD):
        name = row["optimizer"].partition(":")[0]
        learned = name in FRONT
        if (learned and row["tuning"] == "none") or row["optimizer"] in BASELINES:
            shown = f"[`{name}`]({link}cards/{name}.md)" if learned else BASELINES[name]
            lines.append(
                f"| {shown} | {row['tuning']} | {measured(row, 'speed_up')} | "
                f"{row['better']} of {row['tasks']} tasks |"
            )
    return lines


def leaders(link: str) -> list[str]:
    """The first twelve optimizers of `heldout/small`."""
    del link
    lines = [
        "| optimizer, tuning | score | speed-up | better than Adam on | p | bytes |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{x['optimizer']}`, {x['tuning']} | {measured(x, 'score')} | "
        f"{measured(x, 'speed_up')} | {x['better']} of {x['tasks']} | {x['p']} | "
        f"{x['state_bytes']} |"
        for x in rows_of(LEADERBOARD)[:12]
    ]
    return lines


def which(link: str) -> list[str]:
    """What to take, and what its update costs."""
    times = {
        (x["optimizer"], x["parameters"]): number(x["times_adam"])
        for x in rows_of(COSTS)
    }
    lines = [
        "| optimizer | what it is | update at 10⁴ parameters | at 10⁷ |",
        "|---|---|---|---|",
    ]
    for name, what in FRONT.items():
        small, large = times[name, "1e4"], times[name, "1e7"]
        lines.append(
            f"| [`{name}`]({link}cards/{name}.md) | {what} | {small} | {large} |"
        )
    return lines


def costs(link: str) -> list[str]:
    """What updates of all shipped optimizers cost."""
    del link
    rows = rows_of(COSTS)
    sizes = list(dict.fromkeys(x["parameters"] for x in rows))
    lines = [
        f"| update over Adam's | {' | '.join(f'{x} parameters' for x in sizes)} |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for name in dict.fromkeys(x["optimizer"] for x in rows if x["optimizer"] != "adam"):
        found = {x["parameters"]: x for x in rows if x["optimizer"] == name}
        cells = [
            "{times_adam} ({low} to {high})".format(**found[size]) for size in sizes
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def shares(link: str) -> list[str]:
    """Which share of a training step updates take, at every size."""
    del link
    rows = [x for x in rows_of(COSTS) if x["share_1k"]]
    sizes = list(dict.fromkeys(x["parameters"] for x in rows))
    lines = [
        f"| share of a step | {' | '.join(f'{x} parameters' for x in sizes)} |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for name in dict.fromkeys(x["optimizer"] for x in rows):
        found = {x["parameters"]: x for x in rows if x["optimizer"] == name}
        cells = [
            ", ".join(f"{float(found[size][x]):.1%}" for x in SHARES) for size in sizes
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


KINDS: dict[str, Callable[[str], list[str]]] = {
    "costs": costs,
    "evidence": evidence,
    "front": front,
    "leaders": leaders,
    "shares": shares,
    "which": which,
}


def with_tables(text: str, link: str) -> str:
    """A page's text with its tables renewed."""

    def table(match: re.Match) -> str:
        head, kind, end = match.groups()
        return head + "\n".join(KINDS[kind](link)) + "\n" + end

    return MARKED.sub(table, text)


def pages() -> dict[Path, str]:
    """Every generated page, and every page with generated tables."""
    made = {ROOT / "docs" / "cards" / f"{name}.md": page(name) for name in ORDER}
    for name in PAGES:
        path = ROOT / name
        link = "docs/" if path.parent == ROOT else ""
        made[path] = with_tables(path.read_text(), link)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    old = [
        path
        for path, text in pages().items()
        if not path.is_file() or path.read_text() != text
    ]
    for path in old:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path])
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
