"""Forward gradients: directional derivatives carried along with inner training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._backprop import all_finite
from ._base import MetaGradient
from ._episode_lengths import Schedule
from ._episodes import (
    FOLLOWS,
    LEADS,
    RUNS_SPECS,
    Runs,
    make_episodes,
    spread,
    where,
    window_info,
)
from ._objective import Objective
from ._perturbations import draw_noise, weighted
from ._problem import Bilevel


class ForwardState(NamedTuple):
    """N inner runs in progress, and how each moves with theta along its direction."""

    runs: Runs
    direction: Any  # like theta, leaves lead with (N,): v of the particle's episode
    tangent: list[jax.Array]  # d runs.inner / d theta . v, of the float leaves


def forward_gradient(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 50,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
) -> MetaGradient:
    r"""Directional derivatives by forward mode: unbiased from truncated unrolls.

    .. math:: g = \frac1N \sum_{i=1}^N v_i\, \frac{1}{K} \sum_{t=1}^K
              \frac{d L_t}{d\theta} v_i, \quad v_i \sim N(0, I)

    A particle draws v at the start of an episode and carries the derivative of its
    state along v from window to window, so nothing is truncated, nothing remembered and
    nothing smoothed: it is the limit of `nres` for small sigma. Its variance is
    `(d + 1) |grad|^2` for d meta-parameters, and explodes like that of backprop where
    the inner dynamics are chaotic. A window costs about two of `nres`'s runs.

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      schedule: draws the length of each episode.
      particles: N, inner runs, one direction each.
      truncation: K, inner steps per call.
      max_offset: as in `gpes`; `schedule.maximum` is a good choice.
      objective: what is made small; the training loss by default.

    Raises:
      ValueError: a number out of range, or an objective that is no sum over windows.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, forward_gradient, learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = forward_gradient(problem, constant(20), truncation=5)

    Source: "Gradients without backpropagation" (Baydin et al., 2022); "Learning by
    directional gradient descent" (DODGE; Silver et al., 2022).
    """
    episodes = make_episodes(
        problem,
        schedule,
        objective,
        particles=particles,
        truncation=truncation,
        max_offset=max_offset,
    )

    def init(key, theta):
        runs = episodes.init(key, spread(theta, 1, particles), problem.data)
        direction = jax.tree.map(jnp.zeros_like, spread(theta, particles))
        tangent = [jnp.zeros_like(x) for x in _split(_carried(runs))[0]]
        return ForwardState(runs, direction, tangent)

    def estimate(key, theta, state, data, step=0):
        k_direction, k_restart = jax.random.split(key)
        done = state.runs.step >= state.runs.length
        fresh = draw_noise(problem, k_direction, theta, particles, 1.0)
        direction = where(done, fresh, state.direction)
        floats, others, join = _split(_carried(state.runs))

        def window(thetas, floats):
            inner, previous = join(floats, others)
            runs = state.runs._replace(inner=inner, previous=previous)
            start = episodes.restart(runs, k_restart, thetas, data, step)
            runs, window = episodes.advance(start, thetas, data)
            value = jnp.sum(window.terms, -1)[0] / window.divisor
            moved, _, _ = _split(_carried(runs))
            return (value, moved), (start, runs, window)

        (_, _), (slope, tangent), (start, runs, window_) = jax.jvp(
            window,
            (spread(theta, 1, particles), floats),
            (jax.tree.map(lambda v: v[None], direction), state.tangent),
            has_aux=True,
        )
        losses = jnp.sum(window_.terms, -1)[0]
        finite = jnp.isfinite(slope) & jnp.isfinite(losses)
        finite &= all_finite([jnp.moveaxis(x, 1, 0) for x in tangent])
        gradient = weighted(jnp.where(finite, slope, 0.0) / particles, direction)
        info = window_info(start, runs, window_, finite)
        return gradient, ForwardState(runs, direction, tangent), info

    specs = ForwardState(RUNS_SPECS, LEADS, FOLLOWS)
    return MetaGradient(init, estimate, specs)


def _carried(runs: Runs) -> Any:
    """What depends on theta and goes on to the next window."""
    return runs.inner, runs.previous


def _split(tree: Any) -> tuple[list[jax.Array], list[Any], Any]:
    """Float leaves, the others, and the function that puts them together again."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(x.dtype, np.floating) for x in leaves]
    floats = [x for x, f in zip(leaves, is_float, strict=True) if f]
    others = [x for x, f in zip(leaves, is_float, strict=True) if not f]

    def join(floats, others):
        floats, others = iter(floats), iter(others)
        return jax.tree.unflatten(
            structure, [next(floats) if f else next(others) for f in is_float]
        )

    return floats, others, join
