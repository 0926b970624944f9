"""An evaluation in the terminal."""

import functools

import numpy as np
from rich.table import Column, Table

from ._aggregate import Interval
from ._board import REFERENCE, Board
from ._leaderboard import leaderboard
from ._scores import diverged, duel, final

_CAPTION = (
    "* learned. score: share of tuned Adam's improvement, interquartile mean and 95 % "
    "interval. speed-up: Adam's steps to the same training loss over its own; ≥ means "
    "at least. better: tasks on which it is better than tuned Adam. lost: runs that "
    "diverged. update: time of an update over that of Adam's. B: bytes."
)
_TASK_CAPTION = (
    "reached: seeds that got to Adam's final loss. <1: a seed that did not; Adam needs "
    "that share of its steps for the loss where it ended. *: the rate is the lowest or "
    "highest of those tried."
)


def terminal_table(board: Board) -> Table:
    """The leaderboard, to fit 80 columns."""
    right = functools.partial(Column, justify="right", no_wrap=True)
    table = Table(
        Column("optimizer", no_wrap=True),
        right("score"),
        right("speed-up"),
        right("better"),
        right("p"),
        right("lost"),
        right("update\n/ Adam"),
        right("state,\nB/param"),
        caption=_CAPTION,
        caption_justify="left",
        title=f"{board.protocol.suite}: {len(board.tasks)} tasks, "
        f"{board.protocol.steps} steps, n = {board.protocol.seeds} seeds",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for row in leaderboard(board):
        reference = row.name == REFERENCE
        table.add_row(
            f"{row.name} *" if row.learned else row.name,
            _two_lines(interval_text(row.score)),
            _two_lines(bounded_text(row.speedup, row.censored)),
            "-" if reference else "{}/{}".format(*row.better),
            "-" if reference else f"{row.p:.2g}",
            "{}/{}".format(*row.diverged) if row.diverged[0] else "-",
            "-" if row.update_time is None else f"{row.update_time:.2g}",
            f"{row.state_bytes:.3g}",
        )
    return table


def _two_lines(text: str) -> str:
    return text.replace(" (", "\n").replace(" to ", "–").removesuffix(")")


def interval_text(x: Interval) -> str:
    """Such as "1.02 (0.98 to 1.07)"."""
    return f"{x.value:.2f} ({x.low:.2f} to {x.high:.2f})"


def bounded_text(x: Interval, censored: float) -> str:
    """The same, with "≥" where half the runs or more are lower bounds."""
    return ("≥" if censored >= 0.5 else "") + interval_text(x)


TASK_HEADER = (
    "task",
    "loss",
    "Adam: loss",
    "Adam's rate",
    "speed-up",
    "reached",
    "Adam needs",
)


def task_rows(board: Board, name: str) -> list[tuple[str, ...]]:
    """One contestant beside tuned Adam, task by task: median and range over seeds.

    Losses are of training. "reached" counts the seeds that got to Adam's final loss;
    where some did not, "Adam needs" is the share of the steps in which Adam gets to
    theirs. A star marks a rate at the edge of what was tried.
    """
    rows: list[tuple[str, ...]] = []
    every = board.protocol.eval_every
    for task in board.tasks:
        mine, rival = board.chosen(name, task), board.chosen(REFERENCE, task)
        train, other = (x.curves["train"]["loss"] for x in (mine, rival))
        found = duel(train, other, every)
        reached = np.isfinite(found.speedup)
        behind = found.rival_fraction[np.isfinite(found.rival_fraction) & ~reached]
        rows.append(
            (
                task,
                spread(train),
                spread(other),
                f"{rival.rate:g}" + "*" * board.at_edge(REFERENCE, task),
                _speedup(found.speedup),
                f"{reached.sum()}/{len(reached)}",
                f"{np.median(behind):.0%}" if len(behind) else "-",
            )
        )
    return rows


def task_table(board: Board, name: str) -> Table:
    """`task_rows` for rich, to fit 100 columns."""
    title = f"{name} beside tuned Adam: training loss, median (range) over seeds"
    table = Table(
        title=title,
        title_justify="left",
        caption=_TASK_CAPTION,
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for i, header in enumerate(TASK_HEADER):
        title = header.replace(" ", "\n")
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in task_rows(board, name):
        table.add_row(*(cell.replace(" (", "\n").removesuffix(")") for cell in row))
    return table


def spread(curves: np.ndarray) -> str:
    """Of (seeds, points): median (range) of the final loss, or how many diverged."""
    lost = int(np.sum(diverged(curves)))
    if lost:
        return f"diverged in {lost} of {len(curves)}"
    return median_range(curves)


def median_range(curves: np.ndarray) -> str:
    """Of the final values, (seeds, points); they may be above the first."""
    last = final(curves)
    return f"{np.median(last):.3g} ({last.min():.3g}–{last.max():.3g})"


def _speedup(speedup: np.ndarray) -> str:
    """Median and range; a seed that did not reach Adam's loss counts as below 1."""
    values = np.sort(np.where(np.isfinite(speedup), speedup, -np.inf))
    middle = float(np.median(values))

    def text(x: float) -> str:
        return f"{x:.2f}" if np.isfinite(x) else "<1"

    return f"{text(middle)} ({text(values[0])}–{text(values[-1])})"
