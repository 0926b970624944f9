"""The tables of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ._rows import common_size, time_at

Row = Mapping[str, Any]


def cost_table(rows: Sequence[Row]) -> Table:
    """Everything, a line per variant."""
    size = common_size(rows)
    table = Table(title="Memory, compute, performance", box=None)
    table.add_column("")
    for name in (
        "theta",
        "state\nB/param",
        "temporary\nB/param",
        "FLOP/\nparam",
        "time / Adam's" if size is None else f"time / Adam's\nat {size:,} (quartiles)",
        "plain\nJAX",
        "compile\ns",
        "score\n(seeds)",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *cells(row, size))
    return table


def cells(row: Row, size: int | None) -> list[str]:
    """One line of it, without the name."""
    costs, score = row["costs"], row["score"]
    time = None if size is None else time_at(row, size)
    return [
        f"{costs['meta_parameters']:,}",
        number(costs["state_bytes"]),
        number(costs["temporary_bytes"]),
        number(costs["flops"]),
        "-"
        if time is None
        else f"{time['ratio']:.2f} ({time['low']:.2f} to {time['high']:.2f})",
        "-" if time is None else f"{time['xla_ratio']:.2f}",
        "-" if time is None else f"{time['compile_seconds']:.1f}",
        "-" if score is None else score_text(score),
    ]


def score_text(score: Mapping[str, Any]) -> str:
    """Mean, smallest to largest, of how many meta-trainings."""
    text = f"{score['mean']:.3f}"
    if score["seeds"] > 1:
        text += f" ({score['low']:.3f} to {score['high']:.3f})"
    return f"{text}, n = {score['seeds']}"


def ablations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per group of features what changes without it.

    Returns:
      `architecture`; `features`, the group; `flops` per parameter that it takes;
      `score`, the change of the mean without it, or None; `low` and `high`, with the
      smallest and largest of its meta-trainings.
    """
    known = {row["name"]: row for row in rows}
    found = []
    for row in rows:
        whole = known.get(row["architecture"])
        if row["axis"] != "features" or whole is None:
            continue
        own, before = row["score"], whole["score"]
        change = {
            key: own[value] - before["mean"] if own and before else None
            for key, value in (("score", "mean"), ("low", "low"), ("high", "high"))
        }
        found.append(
            {
                "architecture": row["architecture"],
                "features": row["name"].rpartition(" -")[2],
                "flops": whole["costs"]["flops"] - row["costs"]["flops"],
                **change,
            }
        )
    return found


def ablation_table(rows: Sequence[Row]) -> Table:
    """Groups of features, left out one at a time."""
    table = Table(title="Without a group of features", box=None)
    table.add_column("")
    for name in ("without", "FLOP/param\nless", "score, change"):
        table.add_column(name, justify="right", no_wrap=True)
    for x in ablations(rows):
        score = "-"
        if x["score"] is not None:
            score = f"{x['score']:+.3f} ({x['low']:+.3f} to {x['high']:+.3f})"
        table.add_row(x["architecture"], x["features"], number(x["flops"]), score)
    return table


def number(x: float) -> str:
    """At most four digits."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"
