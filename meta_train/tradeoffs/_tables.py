"""The tables of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ._rows import common_size, time_at

Row = Mapping[str, Any]


def cost_table(rows: Sequence[Row]) -> Table:
    """What needs no clock, a line per variant."""
    table = _table("Memory and compute")
    for name in (
        "theta",
        "state\nB/param",
        "temporary\nB/param",
        "same in\nplain JAX",
        "FLOP/\nparam",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *cost_cells(row))
    return table


def result_table(rows: Sequence[Row]) -> Table:
    """Times and scores, a line per variant."""
    size = common_size(rows)
    where = "" if size is None else f", times at {size:,} parameters"
    table = _table(f"Results{where}")
    for name in (
        "time / Adam's\n(quartiles)",
        "plain\nJAX",
        "compile\ns",
        "score\n(range)",
        "n",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *result_cells(row, size))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    return table


def cost_cells(row: Row) -> list[str]:
    """A line of `cost_table`, without the name."""
    costs = row["costs"]
    names = ("state_bytes", "temporary_bytes", "xla_temporary_bytes", "flops")
    return [f"{costs['meta_parameters']:,}", *(number(costs[x]) for x in names)]


def result_cells(row: Row, size: int | None) -> list[str]:
    """A line of `result_table`, without the name."""
    found = ["-"] * 5
    if size is not None:
        time = time_at(row, size)
        found[:3] = (
            f"{time['ratio']:.2f} ({time['low']:.2f}-{time['high']:.2f})",
            f"{time['xla_ratio']:.2f}",
            f"{time['compile_seconds']:.1f}",
        )
    if row["score"] is not None:
        score = row["score"]
        text = f"{score['mean']:.3f}"
        if score["seeds"] > 1:
            text += f" ({score['low']:.3f}-{score['high']:.3f})"
        found[3:] = text, str(score["seeds"])
    return found


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
    table = _table("Without a group of features")
    for name in ("without", "FLOP/param\nless", "score, change"):
        table.add_column(name, justify="right", no_wrap=True)
    for x in ablations(rows):
        score = "-"
        if x["score"] is not None:
            score = f"{x['score']:+.3f} ({x['low']:+.3f} to {x['high']:+.3f})"
        table.add_row(x["architecture"], x["features"], number(x["flops"]), score)
    return table


def number(x: float) -> str:
    """Four digits, none of what is less than a thousandth."""
    if abs(x) < 1e-3:
        return "0"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"
