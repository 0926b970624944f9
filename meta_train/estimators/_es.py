"""Evolution strategies over truncated unrolls: PES, NRES, GPES-K, truncated ES."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from l2o.names import check_known

from ._base import MetaGradient
from ._episode_lengths import Schedule
from ._episodes import (
    LEADS,
    RUNS_SPECS,
    Runs,
    make_episodes,
    spread,
    where,
    window_info,
)
from ._objective import Objective
from ._perturbations import (
    Perturbations,
    antithetic,
    check_perturbations,
    draw_noise,
    pair_weights,
    weighted,
)
from ._problem import Bilevel


class ESState(NamedTuple):
    """N antithetic pairs of inner runs in progress."""

    runs: Runs
    noise: Any  # the perturbation in use, leaves lead with (N,); () if never kept
    accumulator: Any  # sum of the perturbations of this episode, leaves lead with (N,)


def gpes(
    problem: Bilevel,
    schedule: Schedule,
    *,
    period: int | None,
    particles: int = 8,
    truncation: int = 50,
    std: float = 0.01,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    clip: float | None = None,
    sign: float | None = None,
) -> MetaGradient:
    r"""Generalised persistent ES (GPES): unbiased from truncated unrolls.

    .. math:: g = \frac{1}{2 \sigma^2 K N} \sum_{i=1}^N A_i \sum_{t=1}^K
              (L_t(\theta + \epsilon_i) - L_t(\theta - \epsilon_i)), \quad
              A_i = \sum_{\text{perturbations of the episode}} \epsilon

    Each call advances N antithetic pairs of inner runs by a window of K steps with the
    same data and keys for both runs of a pair. A pair's perturbation is drawn again
    every `period` steps of its episode: every window gives PES, never gives NRES. The
    mean is the gradient of the mean inner loss of whole episodes, smoothed by
    perturbations that are independent between periods.

    An episode starts and ends at window borders: if its length is no multiple of K, the
    steps past its end do not count. So a window never holds two episodes, its losses
    all belong to the accumulator, and the published estimators' split at a reset (whose
    off-by-one loses an episode's last loss) does not arise. Initial optimizer states
    are made with the perturbed theta and contribute to the gradient.

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      schedule: draws the length of each episode.
      period: inner steps that share a perturbation, a multiple of `truncation`; None
        for the whole episode.
      particles: N, the number of antithetic pairs.
      truncation: K, inner steps per call.
      std: sigma, standard deviation of the perturbations of theta.
      max_offset: first episodes are shortened by up to this many steps, uniformly, so
        that the pairs do not all restart together; at least one step remains. Pairs in
        step make the gradients of successive calls depend on each other, most of all
        with a long period: `schedule.maximum` is a good choice then.
      objective: what is made small; the training loss by default.
      clip, sign: bound, or replace by its sign, the loss difference of a pair; both
        bias the gradient, see `Perturbations`.

    Raises:
      ValueError: a number out of range, a period that is no multiple of `truncation`,
        or an objective that is no sum over windows.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, gpes, learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = gpes(problem, constant(20), period=10, truncation=5)
      >>> theta = problem.init_theta(jax.random.key(0))
      >>> state = estimator.init(jax.random.key(1), theta)
      >>> grad, state, info = jax.jit(estimator.estimate)(
      ...     jax.random.key(2), theta, state, problem.data, 0
      ... )

    Source: "Noise-reuse in online evolution strategies" (Li et al., 2023).
    """
    perturbations = Perturbations(std, clip, sign)
    check_perturbations(perturbations)
    episodes = make_episodes(
        problem,
        schedule,
        objective,
        particles=particles,
        truncation=truncation,
        max_offset=max_offset,
    )
    if period is not None and (period < 1 or period % truncation):
        raise ValueError(
            f"period ({period}) must be a multiple of truncation ({truncation})"
        )
    keeps_noise = period is not None and period > truncation

    def init(key, theta):
        thetas = spread(theta, 2, particles)
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), thetas)
        return ESState(
            episodes.init(key, thetas, problem.data),
            zeros if keeps_noise else (),
            zeros,
        )

    def perturb(state, fresh):
        """The perturbations of this window, in use and accumulated."""
        runs, accumulator = state.runs, state.accumulator
        done = runs.step >= runs.length
        if period is None:
            noise = where(done, fresh, accumulator)
            return noise, (), noise
        accumulator = where(done, jax.tree.map(jnp.zeros_like, fresh), accumulator)
        if not keeps_noise:
            return fresh, (), jax.tree.map(jnp.add, accumulator, fresh)
        drawn = done | (runs.step % period == 0)
        noise = where(drawn, fresh, state.noise)
        longer = jax.tree.map(jnp.add, accumulator, noise)
        return noise, noise, where(drawn, longer, accumulator)

    def estimate(key, theta, state, data, step=0):
        k_noise, k_restart = jax.random.split(key)
        fresh = draw_noise(problem, k_noise, theta, particles, std)
        noise, kept, accumulator = perturb(state, fresh)
        thetas = antithetic(theta, noise)
        start = episodes.restart(state.runs, k_restart, thetas, data, step)
        runs, window = episodes.advance(start, thetas, data)
        weight, finite = pair_weights(window.terms, window.divisor, perturbations)
        gradient = weighted(weight, accumulator)
        info = window_info(start, runs, window, finite)
        return gradient, ESState(runs, kept, accumulator), info

    specs = ESState(RUNS_SPECS, LEADS, LEADS)
    return MetaGradient(init, estimate, specs)


def pes(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 50,
    std: float = 0.01,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    clip: float | None = None,
    sign: float | None = None,
) -> MetaGradient:
    r"""Persistent evolution strategies (PES): `gpes` with a new draw in every window.

    Unbiased for a smoothed mean loss of whole episodes. Its variance grows with the
    number of windows in an episode (for a linear loss the trace in window n is
    `(n d + 1) |v|^2` with d meta-parameters, where that of `nres` stays
    `(d + 1) |v|^2`); its perturbations being independent, it averages a rough
    meta-loss that `nres` follows.

    Args:
      problem, schedule, particles, truncation, std, max_offset, objective, clip, sign:
        as in `gpes`.

    Raises:
      ValueError: as `gpes`.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, learn_optimizer, pes
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = pes(problem, constant(20), truncation=5)

    Source: "Unbiased gradient estimation in unrolled computation graphs with persistent
    evolution strategies" (Vicol et al., 2021).
    """
    return gpes(
        problem,
        schedule,
        period=truncation,
        particles=particles,
        truncation=truncation,
        std=std,
        max_offset=max_offset,
        objective=objective,
        clip=clip,
        sign=sign,
    )


def nres(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 50,
    std: float = 0.01,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    clip: float | None = None,
    sign: float | None = None,
) -> MetaGradient:
    r"""Noise-reuse ES, also ES-Single: `gpes` with one draw for the whole episode.

    Its mean is that of full-unroll ES, at the cost of a window per call, and its
    variance does not grow with the number of windows. The gradients of one pair's
    windows share a perturbation, so pairs should be in different phases: give
    `max_offset=schedule.maximum`.

    Args:
      problem, schedule, particles, truncation, std, max_offset, objective, clip, sign:
        as in `gpes`.

    Raises:
      ValueError: as `gpes`.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, learn_optimizer, nres
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = nres(problem, constant(20), truncation=5, max_offset=20)

    Source: "Noise-reuse in online evolution strategies" (Li et al., 2023);
    "Low-variance
    gradient estimation in unrolled computation graphs with ES-Single" (Vicol et al.,
    2023).
    """
    return gpes(
        problem,
        schedule,
        period=None,
        particles=particles,
        truncation=truncation,
        std=std,
        max_offset=max_offset,
        objective=objective,
        clip=clip,
        sign=sign,
    )


def truncated_es(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 50,
    std: float = 0.01,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    clip: float | None = None,
    sign: float | None = None,
    carry: Literal["perturbed", "unperturbed"] = "perturbed",
) -> MetaGradient:
    r"""Truncated evolution strategies: antithetic ES within each window. Biased.

    .. math:: g = \frac{1}{2 \sigma^2 K N} \sum_i \epsilon_i \sum_{t=1}^K
              (L_t(\theta + \epsilon_i) - L_t(\theta - \epsilon_i))

    Both runs of a pair start every window from the same state, so what theta did before
    the window has no part in the gradient: biased towards short horizons.

    Args:
      problem, schedule, particles, truncation, std, max_offset, objective, clip, sign:
        as in `gpes`.
      carry: the state with which the next window starts: that of the run at
        theta + epsilon, as published; or that of a third run at theta, which costs half
        as much again and trains the inner problems with the theta that is learned.

    Raises:
      ValueError: as `gpes`; an unknown `carry`.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, learn_optimizer, truncated_es
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = truncated_es(problem, constant(20), truncation=5)

    Source: google/learned_optimization, outer_trainers/truncated_es.py (2021).
    """
    perturbations = Perturbations(std, clip, sign)
    check_perturbations(perturbations)
    check_known("carry", carry, ("perturbed", "unperturbed"))
    signs = 2 if carry == "perturbed" else 3
    episodes = make_episodes(
        problem,
        schedule,
        objective,
        particles=particles,
        truncation=truncation,
        max_offset=max_offset,
    )

    def init(key, theta):
        return episodes.init(key, spread(theta, 1, particles), problem.data)

    def estimate(key, theta, state, data, step=0):
        k_noise, k_restart = jax.random.split(key)
        noise = draw_noise(problem, k_noise, theta, particles, std)
        thetas = antithetic(theta, noise)
        if carry == "unperturbed":
            thetas = jax.tree.map(
                lambda pair, x: jnp.concatenate([pair, x]),
                thetas,
                spread(theta, 1, particles),
            )
        start = episodes.restart(with_runs(state, signs), k_restart, thetas, data, step)
        runs, window = episodes.advance(start, thetas, data)
        weight, finite = pair_weights(window.terms[:2], window.divisor, perturbations)
        info = window_info(start, runs, window, finite)
        carried = 0 if carry == "perturbed" else 2
        return weighted(weight, noise), one_run(runs, carried), info

    return MetaGradient(init, estimate, RUNS_SPECS)


def with_runs(runs: Runs, signs: int) -> Runs:
    """Particles of one run as particles of `signs` runs in the same state."""

    def repeat(x):
        return jnp.broadcast_to(x, (signs, *x.shape[1:]))

    return runs._replace(
        inner=jax.tree.map(repeat, runs.inner),
        previous=jax.tree.map(repeat, runs.previous),
    )


def one_run(runs: Runs, index: int) -> Runs:
    """The particles' runs number `index`."""

    def pick(x):
        return x[index : index + 1]

    return runs._replace(
        inner=jax.tree.map(pick, runs.inner),
        previous=jax.tree.map(pick, runs.previous),
    )
