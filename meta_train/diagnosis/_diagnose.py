"""Which meta-gradient estimator a learned optimizer can be trained with, and why."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from l2o.tasks import task_specs

from .._config import check_types, require, resolved, strict
from ..estimators._backprop import backprop, truncated_backprop
from ..estimators._base import MetaGradient
from ..estimators._episode_lengths import Schedule
from ..estimators._episodes import spread
from ..estimators._es import nres, pes, truncated_es
from ..estimators._forward import forward_gradient
from ..estimators._full import make_full_unroll
from ..estimators._full_es import full_es
from ..estimators._inverse_variance import inverse_variance
from ..estimators._objective import Objective
from ..estimators._problem import Bilevel
from ..estimators._unroll import inner_init, inner_step
from ._dynamics import growth, largest_singular_value, spectral_radius

_GROUP = 8  # pairs of one inverse_variance call, which needs several
_BATCH = 32  # particles that are vectorised
_SIGNIFICANT = 4.0  # standard errors
_MATERIAL = 0.01  # of the gradient: smaller biases are rounding
_TOLERABLE = 0.5  # of the gradient: what a bias must be shown to be below
_SCALES = (1.0, 10.0)  # of the slices, in perturbations


class _Kind(NamedTuple):
    make: Callable[..., MetaGradient]
    smoothed: bool = False  # takes std
    windowed: bool = False  # takes truncation: a call is a window
    whole: bool = True  # its mean is the gradient of whole episodes
    draws: bool = True  # splits its key: one for directions, one for the runs
    group: int = 1  # particles of a call


ESTIMATORS = {
    # One level of checkpointing: at these lengths memory is no matter, compiling is.
    "backprop": _Kind(functools.partial(backprop, levels=1), draws=False),
    "truncated_backprop": _Kind(
        truncated_backprop, windowed=True, whole=False, draws=False
    ),
    "full_es": _Kind(full_es, smoothed=True),
    "truncated_es": _Kind(truncated_es, smoothed=True, windowed=True, whole=False),
    "pes": _Kind(pes, smoothed=True, windowed=True),
    "nres": _Kind(nres, smoothed=True, windowed=True),
    "forward_gradient": _Kind(forward_gradient, windowed=True),
    "inverse_variance": _Kind(
        inverse_variance, smoothed=True, windowed=True, whole=False, group=_GROUP
    ),
}


@strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is measured of every estimator. The defaults are a matter of minutes."""

    family: str = "mlp16"
    """Task family of the inner problems."""
    lengths: tuple[int, ...] = (2, 5, 10, 20, 50, 100)
    """Inner steps of an episode, increasing; theta matters from 2 on."""
    truncation: int = 20
    """Inner steps per window of the estimators that truncate."""
    std: float = 0.01
    """Standard deviation of the perturbations of theta."""
    particles: int = 128
    """Episodes per estimator and length."""
    runs: int = 8
    """Inner runs behind the exponents and behind every point of the slices."""
    points: int = 21
    """Points of a slice through the meta-loss."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        check_types(self)
        resolved("Diagnosis.family", (self.family,))
        require(
            len(task_specs(self.family)) == 1,
            f"Diagnosis.family must be one task, not all of {self.family!r}",
        )
        require(
            len(self.lengths) > 0
            and self.lengths[0] > 0
            and all(
                a < b for a, b in zip(self.lengths, self.lengths[1:], strict=False)
            ),
            f"Diagnosis.lengths must be positive and increasing, not {self.lengths}",
        )
        for name in ("truncation", "std"):
            value = getattr(self, name)
            require(value > 0, f"Diagnosis.{name} must be positive, not {value}")
        require(
            self.particles >= 2 * _GROUP and self.particles % _GROUP == 0,
            f"Diagnosis.particles must be a multiple of {_GROUP} and at least "
            f"{2 * _GROUP}, not {self.particles}",
        )
        require(self.runs >= 2, f"Diagnosis.runs must be >= 2, not {self.runs}")
        require(self.points >= 3, f"Diagnosis.points must be >= 3, not {self.points}")


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


class Dynamics(NamedTuple):
    """Of the map from one inner state (parameters and optimizer) to the next."""

    growth: np.ndarray  # (runs, T): log |J_t v_t|
    burn_in: int  # steps that do not count in the exponents
    exponents: np.ndarray  # (runs,): leading Lyapunov exponent per step
    steps: np.ndarray  # (3,): where the rest is measured
    spectral_radius: np.ndarray  # (runs, 3)
    singular_value: np.ndarray  # (runs, 3): the largest

    @property
    def exponent(self) -> tuple[float, float]:
        """Mean over runs, standard error."""
        error = np.std(self.exponents, ddof=1) / math.sqrt(len(self.exponents))
        return float(np.mean(self.exponents)), float(error)


class Slice(NamedTuple):
    """The meta-loss along a line through theta, the same runs at every point."""

    length: int
    direction: str  # random 1, random 2, gradient
    offsets: np.ndarray  # in units of a perturbation's typical size, std sqrt(d)
    losses: np.ndarray


class Recommendation(NamedTuple):
    """What to meta-train with."""

    estimator: str
    truncation: int | None  # None: whole episodes
    sentence: str


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


class Samples(NamedTuple):
    """Calls of one estimator at one length, by unit: a particle, or a group of them."""

    gradients: np.ndarray  # (units, d): of the mean loss of an episode
    squares: np.ndarray  # (units,): mean over calls, each taken for the whole of them
    finite: np.ndarray  # (units,)
    inner_steps: int  # per unit
    calls: int
    group: int


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
        gradients[length] = _mean(reference)
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


def sample_gradients(
    name: str, problem: Bilevel, theta: Any, config: Diagnosis
) -> dict[int, Samples]:
    """Episodes of one estimator at every length, in one compiled program."""
    kind = ESTIMATORS[name]
    arguments: dict[str, Any] = {"particles": kind.group}
    if kind.smoothed:
        arguments["std"] = config.std
    if kind.windowed:
        arguments["truncation"] = config.truncation
    estimator = kind.make(problem, _as_told(config), **arguments)

    def episode(key, theta, data, length):
        calls = -(-length // config.truncation) if kind.windowed else 1

        def call(i, carry):
            state, gradient, squares, bad, steps = carry
            k_call = jax.random.fold_in(key, i)
            if not kind.draws:  # the runs of the others
                k_call = jax.random.split(k_call)[1]
            g, state, info = estimator.estimate(k_call, theta, state, data, length)
            g = ravel_pytree(g)[0]
            squares += jnp.sum(g**2)
            return (
                state,
                gradient + g,
                squares,
                bad + info.nonfinite,
                (steps + info.inner_steps),
            )

        # A window's value is a sum over its steps / K, also where the episode ends in
        # it: times K / T they add up to the mean over the episode.
        scale = config.truncation / length if kind.windowed else 1.0
        zeros = jnp.zeros_like(ravel_pytree(theta)[0])
        start = (estimator.init(key, theta), zeros, 0.0, 0, 0)
        _, gradient, squares, bad, steps = jax.lax.fori_loop(0, calls, call, start)
        return gradient * scale, squares * scale**2 * calls, bad == 0, steps

    batched = jax.jit(jax.vmap(episode, in_axes=(0, None, None, None)))
    units = config.particles // kind.group
    keys = jax.random.split(jax.random.key(config.seed), units)
    size = math.gcd(units, _BATCH // kind.group)
    result = {}
    for length in config.lengths:
        parts = [
            jax.device_get(
                batched(keys[i : i + size], theta, problem.data, jnp.int32(length))
            )
            for i in range(0, units, size)
        ]
        gradients, squares, finite, steps = map(
            np.concatenate, zip(*parts, strict=True)
        )
        gradients = gradients.astype(np.float64)
        finite = finite & np.isfinite(gradients).all(-1)
        result[length] = Samples(
            gradients=gradients,
            squares=squares.astype(np.float64),
            finite=finite,
            inner_steps=int(steps[0]),
            calls=-(-length // config.truncation) if kind.windowed else 1,
            group=kind.group,
        )
    return result


def compare(samples: Mapping[str, Samples], config: Diagnosis) -> list[Cell]:
    """The cells of one length; theirs is 0 until it is told.

    The reference is backprop, which is exact, unless it is noisier than full ES.
    """
    exact, smooth = samples["backprop"], samples["full_es"]
    quiet = exact.finite.all() and _variance(exact) <= _variance(smooth)
    reference = "backprop" if quiet else "full_es"
    base = samples[reference]
    size = math.sqrt(max(squared_mean(base.gradients[base.finite]).value, 0.0))
    cells = []
    for name, x in samples.items():
        norm2 = float(np.sum(_mean(x) ** 2))
        variance = _variance(x)
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


def measure_dynamics(problem: Bilevel, theta: Any, config: Diagnosis) -> Dynamics:
    """Exponents of `config.runs` runs as long as the longest episode."""
    length = config.lengths[-1]
    third = -(-length // 3)

    def one(key, theta, data):
        k_config, _, k_init, k_steps = jax.random.split(key, 4)
        tx, task = problem.inner(theta, problem.sample(k_config), data, length)

        def step(state):
            inner, t = state
            inner, _, _ = inner_step(tx, task, inner, jax.random.fold_in(k_steps, t))
            return inner, t + 1

        def stretch(state, key):
            state = jax.lax.fori_loop(0, third, lambda _, s: step(s), state)
            radius = spectral_radius(step, state, key)
            return state, (radius, largest_singular_value(step, state, key))

        # The first state does not depend on theta; roots of zero accumulators, of which
        # it is full, have no derivative.
        state = step((inner_init(tx, task, k_init), jnp.int32(0)))
        logs, _ = growth(step, state, key, length)
        _, (radius, singular) = jax.lax.scan(stretch, state, jax.random.split(key, 3))
        return logs, radius, singular

    keys = jax.random.split(jax.random.key(config.seed), config.runs)
    logs, radius, singular = jax.device_get(
        jax.jit(jax.vmap(one, in_axes=(0, None, None)))(keys, theta, problem.data)
    )
    burn_in = length // 4
    return Dynamics(
        growth=logs,
        burn_in=burn_in,
        exponents=logs[:, burn_in:].mean(-1),
        steps=1 + third * np.arange(1, 4),
        spectral_radius=radius,
        singular_value=singular,
    )


def measure_slices(
    problem: Bilevel, theta: Any, config: Diagnosis, gradients: Mapping[int, np.ndarray]
) -> list[Slice]:
    """Through theta, at the shortest and the longest length."""
    flat, unravel = ravel_pytree(theta)
    full_unroll = make_full_unroll(
        problem, _as_told(config), Objective(), particles=config.runs
    )
    key = jax.random.key(config.seed)

    @jax.jit
    def losses(points, data, length):
        def loss(point):
            thetas = spread(unravel(point), 1, config.runs)
            result = full_unroll(key, thetas, data, length)
            return jnp.mean(jnp.sum(result.terms, -1) / result.divisor)

        return jax.lax.map(loss, points)

    trains = jax.tree.map(
        lambda keep, x: jnp.full(x.shape, float(keep), x.dtype),
        problem.trainable(theta),
        theta,
    )
    random = jax.random.normal(key, (2, flat.size)) * ravel_pytree(trains)[0]
    offsets = np.linspace(-1, 1, config.points)
    slices = []
    for length in dict.fromkeys((config.lengths[0], config.lengths[-1])):
        directions = {
            "random 1": random[0],
            "random 2": random[1],
            "gradient": jnp.asarray(gradients[length], flat.dtype),
        }
        for scale in _SCALES:
            for name, v in directions.items():
                # As long as a perturbation is on average.
                size = jnp.maximum(jnp.linalg.norm(v), 1e-30)
                v = v / size * math.sqrt(flat.size) * config.std
                points = flat + scale * offsets[:, None].astype(flat.dtype) * v
                values = losses(points, problem.data, jnp.int32(length))
                slices.append(Slice(length, name, scale * offsets, np.asarray(values)))
    return slices


def recommend(
    cells: Sequence[Cell],
    crossing: float | None,
    dynamics: Dynamics,
    config: Diagnosis,
) -> Recommendation:
    """The cheapest of what is usable at the longest length, and why."""
    longest = [c for c in cells if c.length == config.lengths[-1]]
    usable = sorted((c for c in longest if c.usable), key=lambda c: c.price)
    length = config.lengths[-1]
    if not usable:
        return Recommendation(
            "full_es",
            None,
            f"Use full_es with a larger std or shorter episodes: at T = {length} every "
            "estimator has particles that are not finite, or a bias that is "
            "significant.",
        )
    # Within the errors of variances the one with the shorter calls.
    close = [c for c in usable if c.price <= 1.05 * usable[0].price]
    best = min(close, key=lambda c: c.inner_steps / c.calls)
    windowed = ESTIMATORS[best.estimator].windowed
    rest = [c for c in usable if c not in close]
    reason = (
        f"at T = {length} its variance x inner steps, {best.price:.2g}, is the lowest "
        "of the estimators without significant bias"
    )
    if rest and best.price > 0:
        reason += f" ({rest[0].estimator}: {rest[0].price / best.price:.2g} times that)"
    exponent, error = dynamics.exponent
    reason += (
        "; backprop's variance "
        + (
            f"stays below that of full_es up to T = {length}"
            if crossing is None
            else f"passes that of full_es at T = {crossing:.0f}"
        )
        + f", and the leading Lyapunov exponent is {exponent:+.3f} ± {error:.3f} per "
        f"step, a factor of e^{exponent * length:.1f} in {length} steps"
    )
    if crossing is not None and exponent > 2 * error:
        reason += f"; backpropagate through no more than {crossing:.0f} steps"
    how = (
        f"with windows of {config.truncation} steps"
        if windowed
        else f"over whole episodes of {length} steps"
    )
    return Recommendation(
        best.estimator,
        config.truncation if windowed else None,
        f"Use {best.estimator} {how}: {reason}.",
    )


def _as_told(config: Diagnosis) -> Schedule:
    """Episodes as long as the outer step's number: one program for all lengths."""
    return Schedule(lambda key, step: step, 1, config.lengths[-1])


def _mean(x: Samples) -> np.ndarray:
    """Of the finite units; zero if there are none."""
    return np.where(x.finite[:, None], x.gradients, 0.0).sum(0) / max(
        int(x.finite.sum()), 1
    )


def _variance(x: Samples) -> float:
    """Of one particle; infinite if fewer than two units are finite."""
    if x.finite.sum() < 2:
        return math.inf
    return float(x.group * np.sum(np.var(x.gradients[x.finite], 0, ddof=1)))


def _variances(cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
    backprop, es = (
        [c.variance for c in cells if c.estimator == name]
        for name in ("backprop", "full_es")
    )
    return backprop, es


def _differences(x: Samples, base: Samples) -> np.ndarray:
    """Of units from the reference's particles on the same tasks, as far as finite."""
    shape = (len(x.finite), -1)
    finite = x.finite & base.finite.reshape(shape).all(-1)
    means = base.gradients.reshape(*shape, base.gradients.shape[-1]).mean(1)
    return (x.gradients - means)[finite]
