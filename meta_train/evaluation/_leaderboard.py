"""The leaderboard: a row per contestant, the best first."""

from typing import Any, NamedTuple

import numpy as np

from ._aggregate import Interval, improves, interval, iqm, p_value
from ._board import REFERENCE, Board
from ._scores import diverged


class Row(NamedTuple):
    """What is said of one contestant; see docs/evaluation.md.

    Attributes:
      name, learned: of the contestant.
      trials: rates that were tried.
      rate_range: decades of neighbouring rates that end within 5 % of the lowest loss
        that runs are judged by, mean over tasks; None if fewer than three ran.
      score: interquartile mean of the improvement, over tasks and seeds.
      median_score: its median.
      area: interquartile mean of the improvement of the area under the curve.
      speedup: median over tasks and seeds, over LR-tuned Adam's envelope.
      censored: share of runs whose speed-up is a lower bound.
      better: tasks on which its mean score is above Adam's, of how many.
      improves: probability that a run of it is better than one of Adam's.
      p: of a two-sided Wilcoxon signed-rank test against Adam over tasks.
      diverged: runs, of how many.
      state_bytes: per parameter, median over tasks.
      step_time: seconds per inner step over Adam's, median over tasks; of machines that
        were shared, so a hint.
      update_time: of an update alone over Adam's; None where it was not taken.
    """

    name: str
    learned: bool
    trials: int
    rate_range: float | None
    score: Interval
    median_score: Interval
    area: Interval
    speedup: Interval
    censored: float
    better: tuple[int, int]
    improves: float
    p: float
    diverged: tuple[int, int]
    state_bytes: float
    step_time: float
    update_time: float | None


def leaderboard(board: Board) -> list[Row]:
    """All contestants, the best score first.

    Args:
      board: of `evaluate` or `load_board`.
    """
    adam = board.scores(REFERENCE)
    rows = [_row(board, name, adam) for name in board.contestants]
    return sorted(rows, key=lambda row: -row.score.value)


def _row(board: Board, name: str, adam: np.ndarray) -> Row:
    chosen = [board.chosen(name, task) for task in board.tasks]
    scores, speedups = board.scores(name), board.speedups(name)
    lost = np.stack([diverged(x.curves["train"]["loss"]) for x in chosen])
    rivals = [board.chosen(REFERENCE, task) for task in board.tasks]
    times = [x.seconds / y.seconds for x, y in zip(chosen, rivals, strict=True)]
    better = np.mean(scores, 0) > np.mean(adam, 0)
    contestant = board.contestants[name]
    ranges = [board.rate_range(name, task) for task in board.tasks]
    return Row(
        name,
        contestant.learned,
        max(len(x) for x in contestant.trials.values()),
        None if np.all(np.isnan(ranges)) else float(np.nanmean(ranges)),
        interval(scores, iqm),
        interval(scores, np.median),
        interval(board.areas(name), iqm),
        interval(speedups.value, np.median),
        float(np.mean(speedups.censored)),
        (int(np.sum(better)), len(better)),
        improves(scores, adam),
        p_value(scores, adam),
        (int(np.sum(lost)), lost.size),
        float(np.median([x.state_bytes for x in chosen])),
        float(np.median(times)),
        board.timings[name].ratio if name in board.timings else None,
    )


def claim(board: Board, name: str, rival: str) -> dict[str, Any]:
    """How two contestants compare, with what is needed to say one beats the other.

    Returns:
      tasks on which the first is better, probability of improvement, p of the Wilcoxon
      signed-rank test over tasks.
    """
    mine, theirs = board.scores(name), board.scores(rival)
    wins = int(np.sum(np.mean(mine, 0) > np.mean(theirs, 0)))
    return {
        "tasks": (wins, mine.shape[1]),
        "improves": improves(mine, theirs),
        "p": p_value(mine, theirs),
    }
