"""Pictures of an evaluation and of a meta-training run: (title, figure, words)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .._palette import COLOURS
from ._aggregate import interval, profile
from ._board import REFERENCE, Board
from ._leaderboard import Row
from ._scores import final, score_range, smooth

Picture = tuple[str, Figure, str]
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
_SHOWN = 6
_POINTS = 200  # of a curve at most, so that a page stays small


def names_in_picture(rows: Sequence[Row], count: int = _SHOWN) -> list[str]:
    """Whom figures show: the learned ones, Adam, and the best of the others.

    Args:
      rows: of `leaderboard`.
      count: how many.
    """
    learned = [row.name for row in rows if row.learned]
    first = [*learned[: count - 1], REFERENCE]
    rest = [row.name for row in rows if row.name not in first]
    return [*first, *rest[: max(count - len(first), 0)]]


def profile_figure(board: Board, names: Sequence[str]) -> Picture:
    """The share of runs whose score is at least so much."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0, 2, 201)
    for name, colour, style in zip(names, COLOURS, STYLES, strict=False):
        share = profile(board.scores(name), thresholds)
        axes.plot(thresholds, share, color=colour, ls=style)
    axes.axvline(1, color="#888888", lw=0.8)
    axes.set(
        xlabel="score (1: tuned Adam's improvement)",
        ylabel="share of runs at least as good",
        ylim=(-0.02, 1.02),
    )
    plain(axes.legend(axes.lines[: len(names)], names, frameon=False))
    tidy(axes)
    at_one = ", ".join(f"{x} {np.mean(board.scores(x) >= 1):.0%}" for x in names)
    words = f"Performance profiles. Share of runs with a score of 1 or more: {at_one}"
    return "Performance profile", figure, words


def curves_figure(board: Board, names: Sequence[str]) -> Picture:
    """Training loss against steps, per task: mean and range over seeds."""
    figure, panels = _panels(board, "inner step", "training loss", 2.9)
    steps = np.arange(0, board.protocol.steps + 1, board.protocol.eval_every)
    count = min(len(steps), _POINTS)
    drawn = np.linspace(0, len(steps) - 1, count).round().astype(int)
    x = steps[drawn]
    for axes, task in zip(panels, board.tasks, strict=False):
        positive = True
        for name, colour, style in zip(names, COLOURS, STYLES, strict=False):
            lines = smooth(board.chosen(name, task).curves["train"]["loss"])
            positive &= bool(np.nanmin(lines) > 0)
            lines = lines[:, drawn]
            axes.plot(x, np.mean(lines, 0), color=colour, ls=style)
            axes.fill_between(
                x, lines.min(0), lines.max(0), color=colour, alpha=0.15, lw=0
            )
        axes.set_title(task, parse_math=False)
        axes.set_yscale("log" if positive else "linear")
        start = board.chosen(REFERENCE, task).curves["train"]["loss"][:, 0]
        low, high = axes.get_ylim()
        top = np.max(start)  # or one that diverges would hide the others
        axes.set_ylim(low, min(high, top + 0.3 * (top - low)))
    _legend(figure, panels[0], names)
    words = (
        f"Learning curves, one panel per task ({', '.join(board.tasks)}): training "
        f"loss against inner steps of {', '.join(names)}; their ends are in the table"
    )
    return "Learning curves", figure, words


def sweep_figure(board: Board, names: Sequence[str]) -> Picture | None:
    """Final loss on `outer_valid` against the rate, where one was chosen."""
    looks = {
        name: look
        for name, *look in zip(names, COLOURS, STYLES, strict=False)
        if all(len(x) > 1 for x in board.contestants[name].trials.values())
    }
    if not looks:
        return None
    figure, panels = _panels(board, "rate", "loss, outer_valid", 2.5)
    for axes, task in zip(panels, board.tasks, strict=False):
        worst = np.max(board.chosen(REFERENCE, task).curves["train"]["loss"][:, 0])
        for name, (colour, style) in looks.items():
            trials = sorted(
                board.contestants[name].trials[task], key=lambda x: x.rate or 0.0
            )
            losses = np.array(
                [np.mean(final(x.curves["outer_valid"]["loss"])) for x in trials]
            )
            losses = np.where(losses < worst, losses, np.nan)  # those do not count
            rates = [x.rate for x in trials]
            axes.plot(rates, losses, ".", color=colour, ls=style)
        axes.set_title(task, parse_math=False)
        axes.set_xscale("log")
    _legend(figure, panels[0], list(looks))
    edges = sum(board.at_edge(name, task) for name in looks for task in board.tasks)
    words = (
        f"Loss on outer_valid against the rate, one panel per task, of "
        f"{', '.join(looks)}. In {edges} of {len(looks) * len(board.tasks)} the chosen "
        "rate is at the edge of what was tried"
    )
    return "Choice of the rate", figure, words


def one_rate_figure(board: Board, names: Sequence[str]) -> Picture | None:
    """Score with one rate for all tasks, against how far that is from the best one."""
    swept = {
        name: (colour, style, found)
        for name, colour, style in zip(names, COLOURS, STYLES, strict=False)
        if len(found := board.scores_by_rate(name)) > 1
    }
    if not swept:
        return None
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    told = []
    for name, (colour, style, found) in swept.items():
        each = {rate: interval(scores) for rate, scores in found.items()}
        best = max(each, key=lambda rate: each[rate].value)
        x = [rate / best for rate in each]
        value, low, high = zip(*each.values(), strict=True)
        axes.plot(x, value, ".", color=colour, ls=style)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        decades, bounded = score_range(list(each), value)
        width = f"{'at least ' * bounded}{10**decades:.2g}-fold"
        told.append(f"{name} {each[best].value:.2f} at {best:.3g}, {width}")
    axes.set_xscale("log")
    axes.set(xlabel="rate, over the best one", ylabel="score (1: tuned Adam's)")
    plain(axes.legend(axes.lines, list(swept), frameon=False))
    tidy(axes)
    words = (
        "Score with one rate for all tasks, against that rate over the best one: what "
        "a wrong rate costs. The highest, and the range of rates within 5 % of it: "
        f"{'; '.join(told)}"
    )
    return "One rate for all", figure, words


def meta_training_figure(records: Sequence[dict[str, Any]]) -> Picture:
    """Meta-loss against outer steps, one smoothed line per task family."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    families = sorted({r["family"] for r in records})
    for i, family in enumerate(families):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        mine = [r for r in records if r["family"] == family]
        steps = np.array([r["step"] for r in mine])
        loss = np.array([r["meta_loss"] for r in mine], float)
        axes.plot(steps, loss, ".", ms=2, color=colour, alpha=0.25)
        width = max(len(loss) // 20, 1)
        line = np.convolve(loss, np.ones(width) / width, "valid")
        axes.plot(steps[width - 1 :], line, color=colour, ls=style, label=family)
    axes.set(xlabel="outer step", ylabel="meta-loss (mean inner loss)")
    plain(axes.legend(frameon=False))
    tidy(axes)
    words = f"Meta-loss against outer steps, one line per family: {', '.join(families)}"
    return "Meta-training", figure, words


def plain(legend: Any) -> None:
    """Names as they are: a "$" in them is no mathematics."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def tidy(axes: Any) -> None:
    """No frame where there is no axis, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def _panels(board: Board, x: str, y: str, height: float) -> tuple[Figure, list[Any]]:
    columns = min(len(board.tasks), 3 if len(board.tasks) <= 6 else 4)
    rows = -(-len(board.tasks) // columns)
    size = (3.3 * columns, height * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in panels[len(board.tasks) :]:
        axes.remove()
    for i, axes in enumerate(panels[: len(board.tasks)]):
        tidy(axes)
        if i + columns >= len(board.tasks):
            axes.set_xlabel(x)
        if i % columns == 0:
            axes.set_ylabel(y)
    return figure, panels


def _legend(figure: Figure, axes: Any, names: Sequence[str]) -> None:
    legend = figure.legend(
        axes.lines,
        names,
        loc="outside upper center",
        ncols=min(len(names), 4),
        frameon=False,
    )
    plain(legend)
