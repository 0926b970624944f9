"""Estimators side by side: variances, biases, and where two of them cross."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ._samples import Samples
from ._settings import ESTIMATORS, Diagnosis

_SIGNIFICANT = 4.0  # standard errors
_MATERIAL = 0.01  # of the gradient: smaller biases are rounding
_TOLERABLE = 0.5  # of the gradient: what a bias must be shown to be below


class Cell(NamedTuple):
    """One estimator at one length. A particle is an episode: the mean of its calls.

    Variances are traces of covariances over tasks, initialisations, batches and
    directions; those of an estimator that needs a group are of the group's mean, times
    its size.
    """

    estimator: str
    length: int  # T, inner steps of an episode
    particles: int
    nonfinite: int  # particles left out
    mean_norm: float  # |mean gradient|
    standard_error: float  # of that mean: sqrt(variance / particles)
    variance: float  # of one particle
    call_variance: float  # of one call at a uniformly drawn phase of the episode
    calls: int  # per episode
    inner_steps: int  # per particle, both runs of a pair
    reference: str  # whose mean the bias is a distance to
    bias: float  # |mean - reference's mean|, less what its noise adds; 0 if that is all
    bias_limit: float  # two standard errors above it
    significant: bool  # the distance is no accident, nor rounding
    usable: bool  # nothing left out, and no bias that is significant or may be large

    @property
    def price(self) -> float:
        """Variance times inner steps: what a given precision costs."""
        return self.variance * self.inner_steps


def compare(samples: Mapping[str, Samples], config: Diagnosis) -> list[Cell]:
    """The cells of one length; theirs is 0 until it is told.

    The reference is backprop, which is exact, unless it is noisier than full ES.
    """
    exact, smooth = samples["backprop"], samples["full_es"]
    quiet = exact.finite.all() and exact.variance <= smooth.variance
    reference = "backprop" if quiet else "full_es"
    base = samples[reference]
    size = math.sqrt(max(squared_mean(base.gradients[base.finite]).value, 0.0))
    cells = []
    for name, x in samples.items():
        norm2 = float(np.sum(x.mean**2))
        variance = x.variance
        bias = squared_mean(_differences(x, base))
        distance = math.sqrt(bias.value) if bias.value > 0 else 0.0
        significant = (
            bias.value > _SIGNIFICANT * bias.null_error and distance > _MATERIAL * size
        )
        limit = math.sqrt(max(bias.value, 0.0) + 2 * bias.error)
        kind = ESTIMATORS[name]
        small = limit <= _TOLERABLE * size
        whole = kind.whole or x.calls == 1
        group = x.group
        cells.append(
            Cell(
                estimator=name,
                length=0,
                particles=group * len(x.finite),
                nonfinite=group * int(np.sum(~x.finite)),
                mean_norm=math.sqrt(norm2),
                standard_error=math.sqrt(
                    variance / max(group * int(x.finite.sum()), 1)
                ),
                variance=variance,
                call_variance=group * (float(np.mean(x.squares[x.finite])) - norm2)
                if x.finite.any()
                else math.inf,
                calls=x.calls,
                inner_steps=x.inner_steps // group,
                reference=reference,
                bias=distance,
                bias_limit=limit,
                significant=significant,
                usable=bool(x.finite.all() and (small or (whole and not significant))),
            )
        )
    return cells


class SquaredMean(NamedTuple):
    """|mean|^2 of a distribution, from samples; may come out negative."""

    value: float
    null_error: float  # standard error if the mean is zero
    error: float  # if it is as estimated


def squared_mean(x: np.ndarray) -> SquaredMean:
    """Unbiased: products of different samples only; `x` is (R, d).

    Its variance is 2 tr(S^2) / (R (R - 1)) + 4 m' S m / R for mean m and covariance S.
    """
    count = len(x)
    if count < 2:
        return SquaredMean(math.nan, math.nan, math.nan)
    mean = x.mean(0)
    pairs = count * (count - 1)
    value = (count**2 * mean @ mean - np.sum(x**2)) / pairs
    centred = x - mean
    gram = centred @ centred.T
    trace2 = (np.sum(gram**2) - np.sum(np.diag(gram) ** 2)) / pairs
    along = np.sum((centred @ mean) ** 2) / (count - 1)
    null = 2 * trace2 / pairs
    # The mean that `along` is measured with has an error that adds 2 null to it.
    error = max(4 * along / count - null, null)
    return SquaredMean(float(value), math.sqrt(null), math.sqrt(error))


def crossover(
    lengths: Sequence[int], backprop: Sequence[float], es: Sequence[float]
) -> float | None:
    """The first T where backprop's variance passes that of ES; None if it never does.

    Between two lengths the logarithms are taken for straight lines.
    """
    before = None
    for length, b, e in zip(lengths, backprop, es, strict=True):
        if not (b > 0 and e > 0):
            continue  # no step has depended on theta yet
        gap = math.log(b / e) if math.isfinite(b) else math.inf
        if gap > 0:
            if before is None or not math.isfinite(gap):
                return float(length)
            share = -before[1] / (gap - before[1])
            return float(before[0] * (length / before[0]) ** share)
        before = (length, gap)
    return None


def _differences(x: Samples, base: Samples) -> np.ndarray:
    """Of units from the reference's particles on the same tasks, as far as finite."""
    shape = (len(x.finite), -1)
    finite = x.finite & base.finite.reshape(shape).all(-1)
    means = base.gradients.reshape(*shape, base.gradients.shape[-1]).mean(1)
    return (x.gradients - means)[finite]
