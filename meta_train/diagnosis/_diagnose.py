"""Which meta-gradient estimator a learned optimizer can be trained with, and why."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from ..estimators._problem import Bilevel
from ._compare import Cell, compare, crossover
from ._probes import Dynamics, Slice, measure_dynamics, measure_slices
from ._recommend import Recommendation, recommend
from ._samples import sample_gradients
from ._settings import ESTIMATORS, Diagnosis


class Findings(NamedTuple):
    """All that `diagnose` found.

    Attributes:
      cells: of every estimator, at every length of an episode.
      crossover: the length T where backprop's variance passes that of full ES; None
        where it does not.
      dynamics: of inner training: Lyapunov exponents and norms of derivatives.
      slices: the meta-loss along lines through theta.
      recommendation: an estimator, and why.
      meta_parameters: size of theta.
    """

    cells: list[Cell]
    crossover: float | None
    dynamics: Dynamics
    slices: list[Slice]
    recommendation: Recommendation
    meta_parameters: int


def diagnose(
    problem: Bilevel,
    theta: Any,
    config: Diagnosis,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    r"""Variance and bias of every estimator at theta, chaos, the meta-loss around it.

    All estimators see the same tasks, initialisations and batches, so that biases are
    means of differences D_i of particles, and their squares are measured without the
    noise's own contribution:

    .. math:: |b|^2 = \frac{1}{R (R - 1)} \sum_{i \ne j} D_i \cdot D_j

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      theta: where to measure.
      config: lengths, particles; `family` is not read.
      on_progress: called with (programs finished, programs in all).

    Raises:
      ValueError: a problem whose state has no float leaf.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import Diagnosis, diagnose, learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> theta = problem.init_theta(jax.random.key(0))
      >>> config = Diagnosis(lengths=(2, 4), truncation=2, particles=16)
      >>> findings = diagnose(problem, theta, config)  # doctest: +SKIP

    Source: "Gradients are not all you need" (Metz et al., 2021); the unbiased square:
    "A two-sample test for high-dimensional data" (Chen & Qin, 2010).
    """
    total = len(ESTIMATORS) + 2
    done = 0
    on_progress(done, total)
    samples = {}
    # Compiling keeps one core busy per program, so the programs share the machine.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            name: pool.submit(sample_gradients, name, problem, theta, config)
            for name in ESTIMATORS
        }
        following = pool.submit(measure_dynamics, problem, theta, config)
        for name, job in jobs.items():
            samples[name] = job.result()
            done += 1
            on_progress(done, total)
        dynamics = following.result()
        on_progress(done + 1, total)
    cells = []
    gradients = {}
    for length in config.lengths:
        column = compare({name: samples[name][length] for name in samples}, config)
        cells += [cell._replace(length=length) for cell in column]
        reference = samples[column[0].reference][length]
        gradients[length] = reference.mean
    slices = measure_slices(problem, theta, config, gradients)
    on_progress(total, total)
    crossing = crossover(config.lengths, *_variances(cells))
    return Findings(
        cells,
        crossing,
        dynamics,
        slices,
        recommend(cells, crossing, dynamics, config),
        sum(x.size for x in jax.tree.leaves(theta)),
    )


def _variances(cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
    backprop, es = (
        [c.variance for c in cells if c.estimator == name]
        for name in ("backprop", "full_es")
    )
    return backprop, es
