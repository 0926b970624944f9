"""The figures of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .._palette import COLOURS
from ._grid import REFERENCE
from ._labels import label
from ._pareto import pareto
from ._rows import common_size, time_at
from ._tables import ablations, number

Row = Mapping[str, Any]

# With a number of markers that has no divisor in common with that of the colours, all
# pairs differ.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_LINES = 9  # a chart of more is not readable


def figures(rows: Sequence[Row]) -> list[tuple[str, Figure, str]]:
    """Title, figure and alternative text of all that there are numbers for.

    Args:
      rows: of `load_study`.

    Returns:
      Pareto fronts of the score against state, time and FLOPs; time against size; and
      what groups of features are worth.
    """
    size = common_size(rows)
    costs = {
        "state": (
            "state, bytes per parameter",
            lambda row: row["costs"]["state_bytes"],
        ),
        "FLOPs": ("FLOPs per parameter", lambda row: row["costs"]["flops"]),
    }
    if size is not None:
        ratio = f"update time over Adam's, {size:,} parameters"
        costs |= {
            "update time": (ratio, lambda row: time_at(row, size)["ratio"]),
            "update time in plain JAX": (
                f"{ratio}, plain JAX",
                lambda row: time_at(row, size)["xla_ratio"],
            ),
        }
    found = []
    scored = [row for row in rows if row["score"] is not None]
    for title, (name, cost) in costs.items() if len(scored) > 1 else ():
        drawn = _front(scored, name, [cost(row) for row in scored])
        found.append((f"Performance against {title}", *drawn))
    if size is not None:
        found.append(("Update time against tensor size", *_times(rows)))
    if ablations(rows):
        found.append(("Without a group of features", *_ablation(rows)))
    return found


def _look(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(row["architecture"] for row in rows)
    learned = [name for name in names if name != REFERENCE]
    looks = {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, name in enumerate(learned)
    }
    return looks | {REFERENCE: {"color": "0.45", "marker": "+"}}


def _front(
    rows: Sequence[Row], name: str, costs: Sequence[float]
) -> tuple[Figure, str]:
    page = Figure(figsize=(9, 5.5), layout="constrained")
    axes = page.subplots()
    looks = _look(rows)
    points = [(x, row["score"]["mean"]) for x, row in zip(costs, rows, strict=True)]
    learned = [i for i, row in enumerate(rows) if row["name"] != REFERENCE]
    lower_better = np.array([(points[i][0], -points[i][1]) for i in learned])
    front = [learned[i] for i in pareto(lower_better)]
    drawn: set[str] = set()
    for i, (row, point) in enumerate(zip(rows, points, strict=True)):
        look, score = looks[row["architecture"]], row["score"]
        if score["seeds"] > 1 and i in learned:
            spread = score["low"], score["high"]
            axes.plot([point[0]] * 2, spread, color=look["color"], lw=1, alpha=0.5)
        axes.plot(
            *point,
            ls="",
            **look,
            ms=8,
            mfc=look["color"] if i in front else "none",
            label=None if row["architecture"] in drawn else row["architecture"],
        )
        drawn.add(row["architecture"])
    axes.plot(
        *zip(*[points[i] for i in front], strict=True),
        color="0.3",
        lw=1.2,
        drawstyle="steps-post",
        zorder=0,
        label="front",
    )
    axes.axhline(1, color="0.6", lw=0.8, ls=":", zorder=0)
    # A state may be of no size.
    axes.set_xscale("symlog" if min(costs) <= 0 else "log")
    axes.set(xlabel=name, ylabel="score: share of tuned Adam's improvement")
    _plain_ticks(axes, [x for x in costs if x > 0])
    axes.margins(0.12)
    _tidy(axes)
    page.legend(loc="outside right upper", frameon=False, fontsize="small")
    label(
        axes,
        points,
        [row["name"] for row in rows],
        [*front, *(i for i in learned if i not in front)],
    )
    members = "; ".join(
        f"{rows[i]['name']} ({number(points[i][0])}, {points[i][1]:.3f})" for i in front
    )
    return page, (
        f"Scatter plot of {len(learned)} learned optimizers: score, where 1 is tuned "
        f"Adam's, against {name}. On the Pareto front: {members}."
    )


def _times(rows: Sequence[Row]) -> tuple[Figure, str]:
    page = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = page.subplots(1, 2)
    kinds = [row for row in rows if row["axis"] == "as it is"]
    shown = kinds[: _LINES + 1]
    looks = _look(rows)
    for row in shown:
        x = [t["parameters"] for t in row["times"]]
        seconds = np.array([t["seconds"] for t in row["times"]])
        ratio, low, high = (
            np.array([t[key] for t in row["times"]]) for key in ("ratio", "low", "high")
        )
        look = {**looks[row["architecture"]], "lw": 1.3, "ms": 5, "mfc": "none"}
        left.plot(x, seconds * 1e6, **look, label=row["name"])
        bars = np.stack([ratio - low, high - ratio])
        right.errorbar(x, ratio, bars, **look, elinewidth=1, capsize=2)
    for axes, name in (
        (left, "microseconds per update"),
        (right, "update time over Adam's (quartiles)"),
    ):
        axes.set(
            xscale="log", yscale="log", xlabel="parameters of a matrix", ylabel=name
        )
        _tidy(axes)
    low, high = right.get_ylim()
    right.set_ylim(min(low, 0.5), max(high, 2))
    _plain_ticks(right, right.get_ylim(), "y")
    page.legend(loc="outside right upper", frameon=False, fontsize="small")
    ends = "; ".join(
        f"{row['name']} {row['times'][0]['ratio']:.2g} at "
        f"{row['times'][0]['parameters']:,} and {row['times'][-1]['ratio']:.2g} at "
        f"{row['times'][-1]['parameters']:,}"
        for row in shown
    )
    return page, (
        "Two line charts on logarithmic axes: time of an update of one matrix against "
        f"its size, and the same over Adam's. Medians over Adam's: {ends}."
    )


def _ablation(rows: Sequence[Row]) -> tuple[Figure, str]:
    found = ablations(rows)
    names = [f"{x['architecture']} -{x['features']}" for x in found]
    scored = [x for x in found if x["score"] is not None]
    page = Figure(figsize=(9, 1.6 + 0.28 * len(found)), layout="constrained")
    panels = np.ravel(page.subplots(1, 2 if scored else 1, sharey=True, squeeze=False))
    at = np.arange(len(found))
    panels[0].barh(at, [x["flops"] for x in found], color=COLOURS[0], height=0.6)
    panels[0].set_yticks(at, names)
    panels[0].invert_yaxis()
    panels[0].set_xlabel("FLOPs per parameter that the group takes")
    text = [
        f"{n}: {number(x['flops'])} FLOPs" for n, x in zip(names, found, strict=True)
    ]
    if scored:
        where = np.array([i for i, x in enumerate(found) if x["score"] is not None])
        change, low, high = (
            np.array([x[key] for x in scored]) for key in ("score", "low", "high")
        )
        bars = np.stack([change - low, high - change])
        panels[1].barh(where, change, color=COLOURS[1], height=0.6)
        panels[1].errorbar(
            change, where, xerr=bars, fmt="none", ecolor="0.2", elinewidth=1, capsize=2
        )
        panels[1].axvline(0, color="0.3", lw=0.8)
        panels[1].set_xlabel("change of the score without it (range over seeds)")
        text = [
            f"{t}, score {x['score']:+.3f}" if x["score"] is not None else t
            for t, x in zip(text, found, strict=True)
        ]
    for axes in panels:
        _tidy(axes)
    return page, (
        "Bar chart of groups of features, each left out alone: the FLOPs that it takes "
        f"and how the score changes. {'; '.join(text)}."
    )


def _plain_ticks(axes: Any, values: Sequence[float], which: str = "x") -> None:
    """Ticks of 1, 2, 5 and their tens as plain numbers, where there are not many."""
    low, high = min(values), max(values)
    if high / low > 300:
        return
    decades = range(-3, 8)
    ticks = [m * 10.0**e for e in decades for m in (1, 2, 5)]
    ticks = [x for x in ticks if low / 2 <= x <= high * 2]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [f"{x:g}" for x in ticks])
    axis.set_ticks([], minor=True)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
