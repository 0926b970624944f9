"""Backpropagation through inner training, full and truncated."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._base import MetaGradient
from ._episode_lengths import Schedule
from ._episodes import RUNS_SPECS, make_episodes, spread, window_info
from ._full import full_info, make_full_unroll
from ._objective import Objective
from ._problem import Bilevel


def backprop(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    levels: int = 2,
    second_derivatives: bool = True,
) -> MetaGradient:
    r"""The gradient of whole inner runs by reverse mode: exact, and often useless.

    .. math:: g = \frac1N \sum_{i=1}^N \nabla_\theta J_i(\theta)

    Every call trains N tasks from beginning to end, all of one length drawn from the
    schedule. Unbiased without smoothing; where the inner dynamics are chaotic its
    variance grows exponentially with the length (`l2o diagnose` measures it).

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      schedule: draws the length of the call.
      particles: N, the number of tasks.
      objective: J; the mean training loss by default.
      levels: of checkpointing: 0 remembers every step, 1 the states of all T steps, 2
        about 2 sqrt(T) states and makes each step twice more; see `checkpointed_scan`.
      second_derivatives: False takes the inner gradients for constants: cheaper, biased
        (Andrychowicz et al., 2016).

    Raises:
      ValueError: a number out of range, or an unknown objective.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import backprop, constant, learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = backprop(problem, constant(20))
      >>> theta = problem.init_theta(jax.random.key(0))
      >>> grad, state, info = jax.jit(estimator.estimate)(
      ...     jax.random.key(2), theta, (), problem.data, 0
      ... )

    Source: "Gradient-based hyperparameter optimization through reversible learning"
    (Maclaurin et al., 2015); "Gradients are not all you need" (Metz et al., 2021).
    """
    full_unroll = make_full_unroll(
        problem,
        schedule,
        objective,
        particles=particles,
        levels=levels,
        second_derivatives=second_derivatives,
    )

    def estimate(key, theta, state, data, step=0):
        def values(thetas):
            result = full_unroll(key, thetas, data, step)
            return jnp.sum(result.terms) / result.divisor, result

        gradients, result = jax.grad(values, has_aux=True)(spread(theta, 1, particles))
        losses = jnp.sum(result.terms, -1)[0]
        gradient, finite = finite_mean(first_run(gradients), losses)
        return masked(problem, theta, gradient), state, full_info(result, finite)

    return MetaGradient(lambda key, theta: (), estimate, ())


def truncated_backprop(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 20,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    levels: int = 1,
    second_derivatives: bool = True,
) -> MetaGradient:
    r"""Backpropagation within windows of K steps of inner runs in progress. Biased.

    .. math:: g = \frac{1}{KN} \sum_{i=1}^N \sum_{t=1}^K \nabla_\theta L_t(\theta; s_0)

    The state s_0 with which a window starts is taken for a constant: what theta did
    before has no part in the gradient, which is biased towards short horizons.

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      schedule: draws the length of each episode.
      particles: N, the number of tasks in progress.
      truncation: K, inner steps per call.
      max_offset: as in `gpes`.
      objective: what is made small; the training loss by default. "telescoping" is the
        loss at the end of every window.
      levels: of checkpointing within the window, see `checkpointed_scan`.
      second_derivatives: as in `backprop`.

    Raises:
      ValueError: a number out of range, or an objective that is no sum over windows.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, learn_optimizer, truncated_backprop
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = truncated_backprop(problem, constant(20), truncation=5)
      >>> theta = problem.init_theta(jax.random.key(0))
      >>> state = estimator.init(jax.random.key(1), theta)
      >>> grad, state, info = jax.jit(estimator.estimate)(
      ...     jax.random.key(2), theta, state, problem.data, 0
      ... )

    Source: "An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories" (Williams & Peng, 1990); "Learning to learn by gradient
    descent by gradient descent" (Andrychowicz et al., 2016).
    """
    episodes = make_episodes(
        problem,
        schedule,
        objective,
        particles=particles,
        truncation=truncation,
        max_offset=max_offset,
        levels=levels,
        second_derivatives=second_derivatives,
    )

    def init(key, theta):
        return episodes.init(key, spread(theta, 1, particles), problem.data)

    def estimate(key, theta, state, data, step=0):
        def values(thetas):
            # Initial optimizer states depend on theta, so the restart is inside.
            start = episodes.restart(state, key, thetas, data, step)
            runs, window = episodes.advance(start, thetas, data)
            return jnp.sum(window.terms) / window.divisor, (start, runs, window)

        gradients, (start, runs, window) = jax.grad(values, has_aux=True)(
            spread(theta, 1, particles)
        )
        losses = jnp.sum(window.terms, -1)[0]
        gradient, finite = finite_mean(first_run(gradients), losses)
        info = window_info(start, runs, window, finite)
        return masked(problem, theta, gradient), runs, info

    return MetaGradient(init, estimate, RUNS_SPECS)


def first_run(gradients: Any) -> Any:
    """(1, N, ...) -> (N, ...)."""
    return jax.tree.map(lambda g: g[0], gradients)


def all_finite(gradients: Any) -> jax.Array:
    """(N,): particles of which every entry is finite; leaves lead with (N,)."""
    return jnp.stack(
        [
            jnp.all(jnp.isfinite(g.reshape(len(g), -1)), -1)
            for g in jax.tree.leaves(gradients)
        ]
    ).all(0)


def finite_mean(gradients: Any, losses: jax.Array) -> tuple[Any, jax.Array]:
    """Sum over the finite particles, divided by N; and which are finite, (N,)."""
    finite = all_finite(gradients) & jnp.isfinite(losses)

    def mean(g):
        used = finite.reshape(-1, *[1] * (g.ndim - 1))
        return jnp.sum(jnp.where(used, g, 0.0), 0) / finite.size

    return jax.tree.map(mean, gradients), finite


def masked(problem: Bilevel, theta: Any, gradient: Any) -> Any:
    """The gradient, zero where theta is frozen."""
    zeros = optax.tree.zeros_like(gradient)
    return jax.tree.map(
        lambda keep, g, z: g if keep else z, problem.trainable(theta), gradient, zeros
    )
