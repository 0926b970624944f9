"""Numbers out of the learning curves of one task."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 5  # points of the trailing mean that losses are read from
_TOLERANCE = 0.05  # of the lowest loss, within which a rate counts as good as the best
_EMA = 0.95  # of the published envelope, per so many steps:
_EMA_STEPS = 10


def smooth(curves: np.ndarray) -> np.ndarray:
    """Trailing mean over up to five points, along the last axis."""
    sums = np.cumsum(np.pad(curves, [(0, 0)] * (curves.ndim - 1) + [(1, 0)]), -1)
    end = np.arange(1, curves.shape[-1] + 1)
    start = np.maximum(end - WINDOW, 0)
    return (sums[..., end] - sums[..., start]) / (end - start)


def final(curves: np.ndarray) -> np.ndarray:
    """(..., points) -> the mean over the last five points; NaN where one is."""
    return np.mean(curves[..., -WINDOW:], -1)


def diverged(train: np.ndarray) -> np.ndarray:
    """Runs that end with a loss which is not finite, or above that of no training.

    Args:
      train: (seeds, points).
    """
    last = final(train)
    return ~np.isfinite(last) | (last > train[:, 0])


def area(train: np.ndarray) -> np.ndarray:
    """(seeds, points) -> the mean loss over the run, by the trapezoid rule."""
    return np.trapezoid(train, axis=-1) / (train.shape[-1] - 1)


def improvement(loss: np.ndarray, initial: np.ndarray, reference: float) -> np.ndarray:
    """Share of a reference's improvement: `(l0 - l) / (l0 - reference)`, from 0 to 2.

    1 is as good as the reference, 0 no better than no training; not finite counts as 0.

    Args:
      loss, initial: (seeds,), at the end and before training.
      reference: a loss that was reached.
    """
    gain = np.mean(initial) - reference
    share = (initial - loss) / gain if gain > 0 else np.zeros_like(loss)
    return np.clip(np.where(np.isfinite(share), share, 0.0), 0.0, 2.0)


def rate_range(rates: Sequence[float], losses: Sequence[float] | np.ndarray) -> float:
    """Decades of neighbouring rates that end within 5 % of the lowest loss.

    0 where only the best rate does; of what was tried, so the spacing of the rates is
    its resolution and their range its bound.

    Args:
      rates: that were tried, in any order.
      losses: at each; not finite is as good as infinite.

    Returns:
      NaN if there is no finite loss.
    """
    order = np.argsort(rates)
    loss = np.asarray(losses, float)[order]
    loss = np.where(np.isfinite(loss), loss, np.inf)
    low = high = int(np.argmin(loss))
    if not np.isfinite(loss[low]):
        return np.nan
    fine = loss <= loss[low] + _TOLERANCE * abs(loss[low])
    while low > 0 and fine[low - 1]:
        low -= 1
    while high + 1 < len(fine) and fine[high + 1]:
        high += 1
    tried = np.asarray(rates, float)[order]
    return float(np.log10(tried[high] / tried[low]))


def score_range(rates: Sequence[float], scores: Sequence[float]) -> tuple[float, bool]:
    """Decades of rates around the best whose score is within 5 % of the highest.

    Scores between neighbours are interpolated, linearly in the logarithm of the rate.

    Args:
      rates: that were tried, in any order.
      scores: with each rate, the higher the better.

    Returns:
      The decades, and whether an end of what was tried bounds them.
    """
    order = np.argsort(rates)
    x, y = np.log10(np.asarray(rates, float)[order]), np.asarray(scores, float)[order]
    least = (1 - _TOLERANCE) * np.max(y)
    best = int(np.argmax(y))

    def reach(away: list[int]) -> tuple[float, bool]:
        for i, j in itertools.pairwise([best, *away]):
            if y[j] < least:
                share = (y[i] - least) / (y[i] - y[j])
                return abs(x[i] - x[best]) + share * abs(x[j] - x[i]), False
        return abs(x[away[-1]] - x[best]) if away else 0.0, True

    below, above = reach([*range(best)][::-1]), reach([*range(best + 1, len(y))])
    return float(below[0] + above[0]), below[1] or above[1]


class Envelope(NamedTuple):
    """The lowest loss that any rate of a grid has reached by each step.

    Attributes:
      steps: (points,), from 0.
      loss: (points,), never rising.
    """

    steps: np.ndarray
    loss: np.ndarray


def ema(curves: np.ndarray, every: int) -> np.ndarray:
    """Exponential mean along the last axis, of the first point on.

    Source: google/learned_optimization, baselines (2021): 0.95 per evaluation, of which
    there is one in 10 steps; here the same per step.
    """
    decay = _EMA ** (every / _EMA_STEPS)
    out = np.empty_like(curves)
    out[..., 0] = curves[..., 0]
    for i in range(1, curves.shape[-1]):
        out[..., i] = decay * out[..., i - 1] + (1 - decay) * curves[..., i]
    return out


def envelope(grid: Sequence[np.ndarray], every: int) -> Envelope:
    """Of training losses, one array of (seeds, points) per rate.

    The mean over seeds, its `ema`, the minimum over rates, the running minimum.
    """
    means = np.stack([ema(np.mean(train, 0), every) for train in grid])
    lowest = np.min(np.where(np.isnan(means), np.inf, means), 0)
    steps = np.arange(means.shape[-1]) * every
    return Envelope(steps, np.minimum.accumulate(lowest))


def steps_to(reached: Envelope, loss: np.ndarray) -> np.ndarray:
    """The earliest step at which the envelope is at each loss, interpolated.

    0 for a loss above the envelope's first, or not finite; its last step for one that
    it never reaches.
    """
    found = np.empty(loss.shape)
    for index, value in np.ndenumerate(loss):
        below = reached.loss <= value
        if not np.isfinite(value):
            found[index] = 0.0
        elif not below.any():
            found[index] = reached.steps[-1]
        else:
            i = int(below.argmax())
            if i == 0:
                found[index] = 0.0
                continue
            high, low = reached.loss[i - 1], reached.loss[i]
            share = (high - value) / (high - low)
            start, end = reached.steps[i - 1], reached.steps[i]
            found[index] = start + share * (end - start)
    return found


class Speedup(NamedTuple):
    """Per seed: Adam's steps over steps used, and whether it is a lower bound."""

    value: np.ndarray
    censored: np.ndarray


def speedup(train: np.ndarray, every: int, adam: Envelope) -> Speedup:
    """Steps that LR-tuned Adam needs to the final training loss, over those used.

    Where Adam never gets there its horizon counts, and the value is a lower bound.

    Args:
      train: (seeds, points) of training losses.
      every: steps between points.
      adam: from `envelope`, of runs that may be longer.
    """
    last = ema(train, every)[:, -1]
    used = (train.shape[-1] - 1) * every
    value = np.where(diverged(train), 0.0, steps_to(adam, last) / used)
    return Speedup(value, last < adam.loss[-1])


def first_at_most(
    steps: np.ndarray, curves: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """The first step at which each curve is at or below its target, or NaN."""
    reached = curves <= targets[:, None]  # False for NaN
    return np.where(reached.any(-1), steps[reached.argmax(-1)], np.nan)


class Duel(NamedTuple):
    """One run against a rival's of the same seed; arrays of shape (seeds,)."""

    speedup: np.ndarray  # NaN where the rival's final loss was not reached
    rival_fraction: np.ndarray  # NaN where the rival did not reach the run's


def duel(train: np.ndarray, rival: np.ndarray, every: int) -> Duel:
    """The rival's steps over the steps to the rival's own final training loss.

    Where it is never reached, `rival_fraction` tells how far behind the run is: the
    share of the steps in which the rival gets to the run's final loss.

    Args:
      train, rival: (seeds, points) of training losses.
      every: steps between points.
    """
    steps = np.arange(train.shape[-1]) * every
    train, rival = smooth(train), smooth(rival)
    mine = first_at_most(steps, train, rival[:, -1])
    theirs = first_at_most(steps, rival, train[:, -1])
    return Duel(steps[-1] / np.maximum(mine, every), theirs / steps[-1])
