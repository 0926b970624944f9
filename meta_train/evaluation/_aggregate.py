"""Aggregates over tasks and seeds, with what is uncertain about them.

Source: "Deep reinforcement learning at the edge of the statistical precipice" (Agarwal
et al., 2021).
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 2000


class Interval(NamedTuple):
    """An aggregate and its 95 % interval."""

    value: float
    low: float
    high: float


def iqm(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The mean of the middle half of the scores."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def interval(scores: np.ndarray, aggregate=iqm, seed: int = 0) -> Interval:
    """An aggregate of all scores, by a bootstrap that is stratified by task.

    Seeds are drawn again within every task, tasks are not: the interval is about other
    seeds on these tasks.

    Args:
      scores: (seeds, tasks).
      aggregate: of (n, seeds * tasks), along the last axis.
    """
    seeds, tasks = scores.shape
    draws = np.random.default_rng(seed).integers(seeds, size=(_RESAMPLES, seeds, tasks))
    again = np.take_along_axis(scores[None], draws, 1).reshape(_RESAMPLES, -1)
    low, high = np.quantile(aggregate(again, axis=-1), (0.025, 0.975))
    return Interval(float(aggregate(scores.ravel())), float(low), float(high))


def improves(x: np.ndarray, y: np.ndarray) -> float:
    """Probability that a run of x is better than one of y, mean over tasks.

    Args:
      x, y: (seeds, tasks), the higher the better; equal counts half.
    """
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    return float(np.mean(wins))


def p_value(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided Wilcoxon signed-rank test over tasks, of means over seeds.

    The null hypothesis is that x and y are equally good on tasks like these; 1 where no
    task tells them apart.

    Args:
      x, y: (seeds, tasks).
    """
    difference = np.mean(x, 0) - np.mean(y, 0)
    if not np.any(difference):
        return 1.0
    return float(stats.wilcoxon(difference, zero_method="zsplit").pvalue)


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs that reach each threshold: a performance profile."""
    return np.mean(scores.ravel()[None] >= thresholds[:, None], -1)
