"""One self-contained HTML page about an evaluation and a meta-training run."""

import base64
import collections
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from l2o.files import plain, write_json

from ._board import REFERENCE, Board
from ._figures import (
    Picture,
    curves_figure,
    meta_training_figure,
    names_in_picture,
    one_rate_figure,
    profile_figure,
    sweep_figure,
)
from ._leaderboard import Row, claim, leaderboard
from ._scores import diverged, final
from ._tables import (
    TASK_HEADER,
    bounded_text,
    interval_text,
    median_range,
    spread,
    task_rows,
)

_TUNING = {
    "task": "per task, the one of {trials} with the lowest loss on outer_valid",
    "set": "one for all tasks, of {trials}, chosen on a tuning set",
    "none": "its default",
}
_MANY_ROWS = 12  # of more some can be searched
Cell = tuple[str, float | str]  # what is shown, and what it is sorted by


def write_page(
    path: Path,
    board: Board | None,
    *,
    records: Sequence[dict[str, Any]] = (),
    behaviour: Mapping[str, Sequence[Picture]] | None = None,
    tradeoffs: Sequence[Picture] = (),
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page, `leaderboard.json` and `figures/` beside it; returns its path.

    The same input gives the same bytes, and the page needs no network.

    Args:
      path: of the HTML file.
      board: an evaluation, if there is one.
      records: of `metrics.jsonl`, for the meta-training curve.
      behaviour: per optimizer, pictures of what its rule does.
      tradeoffs: pictures of a study of trade-offs.
      card: of what was meta-trained, where no board has it.
    """
    page = _Page(path)
    if board is not None:
        _evaluation(page, board)
    if records:
        page.heading("Meta-training")
        page.picture("meta_training", meta_training_figure(records))
    cards = {}
    if board is not None:
        every = board.contestants.values()
        cards = {x.name: x.card for x in every if x.card is not None}
    elif card is not None:
        cards = {card["optimizer"]["name"] or "an optimizer of your own": card}
    pictures = behaviour or {}
    for name in dict.fromkeys((*cards, *pictures)):
        page.heading(f"Learned optimizer: {name}")
        if name in cards:
            page.paragraph(_about(cards[name]))
        for i, picture in enumerate(pictures.get(name, ())):
            page.picture(f"behaviour_{name}_{i}", picture)
        if name in cards:
            page.details("Its card", json.dumps(cards[name], indent=2, sort_keys=True))
    if tradeoffs:
        page.heading("Trade-offs")
        for i, picture in enumerate(tradeoffs):
            page.picture(f"tradeoffs_{i}", picture)
    if board is not None:
        _protocol(page, board)
    return page.write("Evaluation" if board is not None else "Meta-training")


def _evaluation(page: "_Page", board: Board) -> None:
    rows = leaderboard(board)
    names = names_in_picture(rows)
    content: dict[str, Any] = {
        "protocol": board.protocol._asdict(),
        "tuning": board.tuning,
        "rows": [plain(row) for row in rows],
        "claims": [
            {"name": name, "against": rival, **claim(board, name, rival)}
            for name, rival in _rivals(rows)
        ],
    }
    write_json(page.path.with_name("leaderboard.json"), content)

    page.heading("Leaderboard")
    p = board.protocol
    trials = max(row.trials for row in rows)
    horizon = next(iter(board.long.values()))[0].setting["steps"] // p.steps
    for row in rows:
        if row.learned:
            page.paragraph(_headline(row, len(rows), rows.index(row)))
    page.paragraph(
        f"{p.suite}, version {p.suite_version}: {len(board.tasks)} tasks, {p.steps} "
        f"steps, n = {p.seeds} seeds. Who has a rate gets "
        f"{_TUNING[board.tuning].format(trials=trials)}; learned optimizers (marked "
        "“learned”) without a rate have one trial. Score: the share of tuned Adam's "
        f"improvement of the {board.split} loss, 1 is as good, bounded to 0 and 2; "
        "interquartile mean over tasks and seeds. Area: the same of the area under the "
        "curve of the training loss. Speed-up: the steps of Adam's "
        "envelope to the run's final training loss over its own, median; Adam ran for "
        f"{horizon} times the steps, and ≥ marks a lower bound. In brackets: 95 % "
        "bootstrap intervals over seeds. Better: tasks with a mean score above Adam's; "
        "p: Wilcoxon signed-rank test of that, over tasks. Update: its time alone over "
        "Adam's. Good rates: neighbours of the best, of those tried, that end within "
        f"5 % of the lowest {board.split} loss; mean over tasks. A star: a rate at "
        "the edge of what was tried, on so many tasks."
    )
    page.table(_HEADER, [_cells(board, row) for row in rows], "Leaderboard")
    if content["claims"]:
        page.table(
            ("optimizer", "against", "better on", "probability", "p"),
            [_claim_cells(x) for x in content["claims"]],
            "Learned optimizers against Adam and the best baseline",
        )
    page.picture("performance_profile", profile_figure(board, names))

    page.heading("Tasks")
    losses = ("train loss", f"{board.split} loss")
    header = ("task", "optimizer", "rate", *losses, "accuracy", "score", "speed-up")
    cells = [_task_cells(board, name, task) for task in board.tasks for name in names]
    page.paragraph(
        "Final losses: median (range) over seeds; score and speed-up: medians. "
        f"Shown are the learned optimizers, Adam, and the best others, "
        f"{len(names)} of {len(rows)}."
    )
    page.table(header, cells, "Results per task")
    for name in board.contestants:
        if board.contestants[name].learned:
            duels = [_duel_cells(row) for row in task_rows(board, name)]
            page.table(TASK_HEADER, duels, f"{name} beside tuned Adam, training loss")
    page.picture("learning_curves", curves_figure(board, names))
    sweep = sweep_figure(board, names)
    if sweep is not None:
        page.picture("rates", sweep)
    one = one_rate_figure(board, names)
    if one is not None:
        page.picture("one_rate", one)


_HEADER = (
    "optimizer",
    "score",
    "median score",
    "area",
    "speed-up",
    "better than Adam",
    "p",
    "probability of improvement",
    "diverged",
    "update / Adam",
    "step / Adam",
    "state, B/param",
    "trials",
    "good rates, decades",
)


def _headline(row: Row, count: int, place: int) -> str:
    wins, tasks = row.better
    lost, runs = row.diverged
    return (
        f"{row.name}: place {place + 1} of {count}, score {interval_text(row.score)}, "
        f"better than tuned Adam on {wins} of {tasks} tasks (p = {row.p:.2g}), median "
        f"speed-up {bounded_text(row.speedup, row.censored)}, {lost} of {runs} runs "
        "diverged."
    )


def _cells(board: Board, row: Row) -> list[Cell]:
    edges = sum(board.at_edge(row.name, task) for task in board.tasks)
    name = row.name + (" (learned)" if row.learned else "")
    update, decades = row.update_time, row.rate_range
    return [
        (name + (f" *{edges}" if edges else ""), row.name),
        (interval_text(row.score), row.score.value),
        (interval_text(row.median_score), row.median_score.value),
        (interval_text(row.area), row.area.value),
        (bounded_text(row.speedup, row.censored), row.speedup.value),
        ("{} of {}".format(*row.better), row.better[0]),
        (f"{row.p:.2g}", row.p),
        (f"{row.improves:.2f}", row.improves),
        ("{} of {}".format(*row.diverged), row.diverged[0]),
        ("–", -1.0) if update is None else (f"{update:.2f}", update),
        (f"{row.step_time:.2f}", row.step_time),
        (f"{row.state_bytes:.3g}", row.state_bytes),
        (str(row.trials), row.trials),
        ("–", -1.0) if decades is None else (f"{decades:.2f}", decades),
    ]


def _rivals(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Each learned optimizer, with Adam and with the best of the other baselines."""
    others = [x.name for x in rows if not x.learned and x.name != REFERENCE]
    for row in rows:
        if row.learned:
            yield from ((row.name, rival) for rival in (REFERENCE, *others[:1]))


def _claim_cells(found: Mapping[str, Any]) -> list[Cell]:
    wins, tasks = found["tasks"]
    return [
        (found["name"], found["name"]),
        (found["against"], found["against"]),
        (f"{wins} of {tasks}", wins),
        (f"{found['improves']:.2f}", found["improves"]),
        (f"{found['p']:.2g}", found["p"]),
    ]


def _task_cells(board: Board, name: str, task: str) -> list[Cell]:
    chosen = board.chosen(name, task)
    train, judged = chosen.curves["train"], chosen.curves[board.split]
    speed = board.speedup(name, task)
    score = float(np.median(board.improvement(name, task)))
    value = float(np.median(speed.value))
    bound = "≥" if np.mean(speed.censored) >= 0.5 else ""
    rate, edge = chosen.rate, "*" * board.at_edge(name, task)
    accuracy = ("–", -1.0)
    # Of a run that is lost it would be the accuracy of no training, or none at all.
    fine = not np.any(diverged(train["loss"]))
    if "accuracy" in judged and fine:
        share = float(np.median(final(judged["accuracy"])))
        accuracy = (f"{share:.1%}", share)
    # What has overfitted has not diverged: its test loss may be above the first.
    loss = median_range(judged["loss"]) if fine else spread(train["loss"])
    return [
        (task, task),
        (name, name),
        ("–", -1.0) if rate is None else (f"{rate:g}{edge}", rate),
        (spread(train["loss"]), _middle(train["loss"]) if fine else np.inf),
        (loss, _middle(judged["loss"]) if fine else np.inf),
        accuracy,
        (f"{score:.2f}", score),
        (f"{bound}{value:.2f}", value),
    ]


def _middle(curves: np.ndarray) -> float:
    """To sort by; a run that is not finite comes last."""
    value = float(np.median(final(curves)))
    return value if np.isfinite(value) else np.inf


def _duel_cells(row: Sequence[str]) -> list[Cell]:
    """Texts of `task_rows` with the numbers that they start with, to sort by."""

    def key(text: str) -> float:
        if text.startswith("diverged"):
            return np.inf
        if text.startswith("<"):
            return 0.0
        number = re.match(r"-?[\d.]+(?:e[+-]\d+)?", text)
        return float(number[0]) if number else -1.0

    return [(row[0], row[0]), *((text, key(text)) for text in row[1:])]


def _about(card: Mapping[str, Any]) -> str:
    trained = card.get("card", {})
    text = f"{card['optimizer']['name'] or 'Its own architecture'}"
    text += f", {card['meta_parameters']:,} meta-parameters"
    if trained.get("outer_steps"):
        text += (
            f", meta-trained for {trained['outer_steps']:,} outer steps "
            f"({trained['inner_steps']:,} inner steps) in {trained['seconds']:.0f} s "
            f"on {', '.join(trained['task_families'])}"
        )
    return text + "."


def _protocol(page: "_Page", board: Board) -> None:
    page.heading("How this was made")
    for note in board.notes:
        page.paragraph(note)
    origins: collections.Counter[str] = collections.Counter()
    times = []
    for contestant in board.contestants.values():
        for trials in contestant.trials.values():
            for result in trials:
                rest = {k: v for k, v in result.origin.items() if k != "time"}
                origins[", ".join(f"{k} {v}" for k, v in rest.items())] += 1
                times.append(result.origin["time"])
    page.paragraph(
        f"{origins.total():,} results, made from {min(times)} to {max(times)}."
    )
    counted = "\n".join(f"{n} with {text}" for text, n in sorted(origins.items()))
    page.details("Code and machines", counted)
    page.details("Protocol", json.dumps(board.protocol._asdict(), indent=2))


class _Page:
    """Collects the parts of the body, and writes pictures as they come."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def details(self, summary: str, text: str) -> None:
        self._parts.append(
            f"<details><summary>{html.escape(summary)}</summary>"
            f"<pre>{html.escape(text)}</pre></details>"
        )

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str
    ) -> None:
        head = "".join(
            f'<th scope="col"><button type="button">{html.escape(x)}</button></th>'
            for x in header
        )
        body = "".join(f"<tr>{_row_html(row)}</tr>" for row in rows)
        search = ""
        if len(rows) > _MANY_ROWS:
            search = '<label>Rows with <input type="search"></label>'
        # To be scrolled with the keyboard it has to take the focus.
        self._parts.append(
            f'{search}<div class="wide" tabindex="0" role="region" '
            f'aria-label="{html.escape(caption)}"><table><caption>'
            f"{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def picture(self, name: str, picture: Picture) -> None:
        title, figure, words = picture
        folder = self.path.parent / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        safe = "".join(x if x.isalnum() or x in "-_" else "_" for x in name)
        buffer = io.BytesIO()
        # Fixed identifiers and no date: the same numbers give the same file.
        with matplotlib.rc_context({"svg.hashsalt": "l2o"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        (folder / f"{safe}.svg").write_bytes(buffer.getvalue())
        figure.savefig(folder / f"{safe}.png", dpi=120, metadata={"Software": None})
        data = base64.b64encode(buffer.getvalue()).decode()
        self._parts.append(
            f'<figure tabindex="0"><figcaption>{html.escape(title)}</figcaption>'
            f'<img alt="{html.escape(words)}" src="data:image/svg+xml;base64,{data}">'
            "</figure>"
        )

    def write(self, title: str) -> Path:
        body = "\n".join(self._parts)
        page = _PAGE.replace("TITLE", html.escape(title)).replace("BODY", body)
        self.path.write_text(page, encoding="utf-8")
        return self.path


def _row_html(row: Sequence[Cell]) -> str:
    def cell(i: int, shown: str, key: float | str) -> str:
        tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        key = f"{key:.17g}" if isinstance(key, int | float) else key
        value = html.escape(key)
        return f'<{tag}{scope} data-key="{value}">{html.escape(shown)}</{tag}>'

    return "".join(cell(i, *each) for i, each in enumerate(row))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>l2o: TITLE</title>
<style>
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #ccc;
        --soft: #f3f3f3; --focus: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececec; --back: #161616; --line: #555; --soft: #242424;
          --focus: #56b4e9; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text);
       background: var(--back); max-width: 80rem; margin: 2rem auto; padding: 0 1rem;
       overflow-wrap: anywhere; }
p { max-width: 50rem; }
figure { margin: 1.5rem 0; }
figcaption, caption { font-weight: 600; text-align: left; padding: .3rem 0; }
img { max-width: 100%; height: auto; background: #fff; padding: .5rem;
      box-sizing: border-box; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; } img { max-width: none; width: 42rem; }
}
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
        font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .35rem .45rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; font-weight: 600; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
thead button { all: unset; cursor: pointer; font-weight: 600; white-space: normal; }
thead button:focus-visible, .wide:focus-visible { outline: 2px solid var(--focus); }
[aria-sort=ascending] button::after { content: " \\25B2"; }
[aria-sort=descending] button::after { content: " \\25BC"; }
label input { font: inherit; color: inherit; background: var(--soft);
              border: 1px solid var(--line); padding: .2rem .4rem; }
pre { overflow-x: auto; background: var(--soft); padding: 1rem; }
@media print {
  body { font-size: 11px; max-width: none; }
  .wide { overflow: visible; } table { font-size: 8px; } th, td { padding: .15rem; }
  thead { display: table-header-group; } tr, figure { break-inside: avoid; }
  details, label { display: none; }
}
</style>
</head>
<body>
<h1>l2o: TITLE</h1>
BODY
<script>
for (const input of document.querySelectorAll("label input")) {
  const body = input.parentElement.nextElementSibling.querySelector("tbody");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(" ");
    for (const row of body.rows) {
      const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const key = row => row.cells[column].dataset.key;
    const rows = [...body.rows];
    const numbers = rows.every(row => key(row) === "inf" || !isNaN(+key(row)));
    // First the highest number, or the start of the alphabet.
    const now = head.getAttribute("aria-sort");
    const down = now === null ? numbers : now === "ascending";
    const number = text => text === "inf" ? Infinity : +text;
    const value = row => numbers ? number(key(row)) : key(row);
    rows.sort((a, b) => {
      const x = value(a), y = value(b), order = x < y ? -1 : x > y ? 1 : 0;
      return down ? -order : order;
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  }));
}
</script>
</body>
</html>
"""
