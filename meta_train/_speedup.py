"""Numbers out of learning curves: final loss and speed-up over Adam."""

from typing import NamedTuple

import numpy as np

_WINDOW = 5  # points of the trailing mean that every number is read from


class Comparison(NamedTuple):
    """One task, seed by seed; arrays of shape (seeds,)."""

    learned_final: np.ndarray
    adam_final: np.ndarray
    speedup: np.ndarray  # NaN where Adam's final loss was not reached
    adam_fraction: np.ndarray  # NaN where Adam did not reach the learned final loss


def smooth(curves: np.ndarray) -> np.ndarray:
    """Trailing mean over up to five points, along the last axis."""
    sums = np.cumsum(np.pad(curves, [(0, 0)] * (curves.ndim - 1) + [(1, 0)]), -1)
    end = np.arange(1, curves.shape[-1] + 1)
    start = np.maximum(end - _WINDOW, 0)
    return (sums[..., end] - sums[..., start]) / (end - start)


def best_learning_rate(grid: np.ndarray) -> tuple[int, list[float]]:
    """Index of the rate with the lowest mean final loss, and all those losses.

    Args:
      grid: (rates, seeds, points). A rate with a non-finite run counts as infinite.
    """
    finals = smooth(grid)[..., -1].mean(-1)
    finals = np.where(np.isfinite(finals), finals, np.inf)
    return int(np.argmin(finals)), finals.tolist()


def compare(steps: np.ndarray, learned: np.ndarray, adam: np.ndarray) -> Comparison:
    """Speed-up of each seed's learned run over the Adam run of the same seed.

    Speed-up = Adam's steps / the learned optimizer's steps to Adam's own final loss.
    Where the learned optimizer never gets there, `adam_fraction` tells how far behind
    it is: the share of its steps that Adam needs to the learned optimizer's final loss.

    Args:
      steps: (points,), from 0.
      learned, adam: (seeds, points) of losses.
    """
    learned, adam = smooth(learned), smooth(adam)
    to_adam = first_at_most(steps, learned, adam[:, -1])
    to_learned = first_at_most(steps, adam, learned[:, -1])
    return Comparison(
        learned_final=learned[:, -1],
        adam_final=adam[:, -1],
        speedup=steps[-1] / np.maximum(to_adam, steps[1]),
        adam_fraction=to_learned / steps[-1],
    )


def first_at_most(
    steps: np.ndarray, curves: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """The first step at which each curve is at or below its target, or NaN."""
    reached = curves <= targets[:, None]  # False for NaN
    return np.where(reached.any(-1), steps[reached.argmax(-1)], np.nan)
