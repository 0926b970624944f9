"""Persistent evolution strategies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o import LearnedOptimizer, trainable
from l2o.tasks import TaskFamily

from ._base import Info, MetaGradient
from ._schedules import Schedule
from ._unroll import InnerState, inner_init, unroll


class PESState(NamedTuple):
    """N antithetic pairs of inner runs in progress; leaves lead with (N,)."""

    inner: InnerState  # leaves lead with (2, N): the + runs, the - runs
    config: Any  # of the pair's task
    key: jax.Array  # of the pair's episode
    step: jax.Array  # int32: inner steps done in this episode
    length: jax.Array  # int32: inner steps this episode will have
    offset: jax.Array  # int32: how much shorter the first episode is
    accumulator: Any  # like theta: sum of the perturbations of this episode so far


def pes(
    optimizer: LearnedOptimizer,
    family: TaskFamily,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 50,
    std: float = 0.01,
    max_offset: int = 0,
) -> MetaGradient:
    r"""Persistent evolution strategies (PES): unbiased from truncated unrolls.

    .. math:: g = \frac{1}{2 \sigma^2 K N} \sum_{i=1}^N A_i \sum_{t=1}^K
              (L_t(\theta + \epsilon_i) - L_t(\theta - \epsilon_i)), \quad
              A_i = \sum_{\text{windows of the episode}} \epsilon_i

    Each call advances N pairs of inner runs by a window of K steps with fresh
    perturbations epsilon, the same data and keys for both runs of a pair. Its mean is
    the gradient of the mean inner loss of whole episodes, smoothed by perturbations
    that are independent between windows. Losses are those of the training batches,
    before each update, normalised by the task.

    An episode starts and ends at window borders: if its length is no multiple of K, the
    steps past its end do not count. So a window never holds two episodes, its losses
    all belong to the accumulator, and the published estimator's split at a reset (whose
    off-by-one loses an episode's last loss) does not arise. Initial optimizer states
    are made with the perturbed theta and contribute to the gradient.

    Args:
      optimizer: what is meta-trained.
      family: draws one task per pair and episode.
      schedule: draws the length of each episode.
      particles: N, the number of antithetic pairs.
      truncation: K, inner steps per call.
      std: sigma, standard deviation of the perturbations of theta.
      max_offset: first episodes are shortened by up to this many steps, uniformly, so
        that the pairs do not all restart together; at least one step remains.

    Raises:
      ValueError: particles, truncation or std that is not positive.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, pes
      >>> from l2o.tasks import quadratic
      >>> optimizer, family = l2o.learnable_sgd(), quadratic(3)
      >>> estimator = pes(optimizer, family, constant(20), truncation=5)
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> state = estimator.init(jax.random.key(1), theta)
      >>> grad, state, info = jax.jit(estimator.estimate)(
      ...     jax.random.key(2), theta, state, family.data
      ... )

    Source: "Unbiased gradient estimation in unrolled computation graphs with persistent
    evolution strategies" (Vicol et al., 2021).
    """
    if particles < 1 or truncation < 1 or not std > 0:
        raise ValueError(
            "pes needs particles >= 1, truncation >= 1 and std > 0, not "
            f"{particles}, {truncation}, {std}"
        )

    def start(theta, config, key, length, data):
        tx = optimizer.bind(theta, num_steps=length)
        return inner_init(tx, family.task(config, data), key)

    def run(theta, inner, config, key, length, steps, data):
        tx = optimizer.bind(theta, num_steps=length)
        task = family.task(config, data)
        inner, losses = unroll(tx, task, inner, key, steps)
        return inner, jax.vmap(task.normalize)(losses)

    def draw(key):
        k_config, k_length, k_init, k_steps = jax.random.split(key, 4)
        return family.sample(k_config), schedule(k_length), k_init, k_steps

    def episodes(key, thetas, offset, data):
        """N new pairs, at their first step, with nothing accumulated."""
        config, length, k_init, k_steps = jax.vmap(draw)(
            jax.random.split(key, particles)
        )
        length = jnp.maximum(length - offset, 1)
        return PESState(
            inner=_over_pairs(start, 1, 3)(thetas, config, k_init, length, data),
            config=config,
            key=k_steps,
            step=jnp.zeros(particles, jnp.int32),
            length=length,
            offset=jnp.zeros(particles, jnp.int32),
            accumulator=jax.tree.map(lambda x: jnp.zeros_like(x[0]), thetas),
        )

    def init(key, theta):
        k_offset, k_episodes = jax.random.split(key)
        thetas = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (2, particles, *x.shape)), theta
        )
        offset = jax.random.randint(k_offset, (particles,), 0, max_offset + 1)
        # Steps 0 of length 0: every pair has ended, so the first window begins
        # episodes, and what is in this state but the offsets is never read.
        shapes = jax.eval_shape(episodes, k_episodes, thetas, offset, family.data)
        return jax.tree.map(_placeholder, shapes)._replace(offset=offset)

    def restart(state, key, thetas, data):
        """Begins a new episode wherever the last one has ended."""
        done = state.step >= state.length
        new = episodes(key, thetas, state.offset, data)
        inner = _where(done, new.inner, state.inner, axis=1)
        state = _where(done, new._replace(inner=()), state._replace(inner=()))
        return state._replace(inner=inner)

    def estimate(key, theta, state, data):
        k_noise, k_restart = jax.random.split(key)
        noise = optax.tree.scale(
            std,
            jax.vmap(optax.tree.random_like, in_axes=(0, None))(
                jax.random.split(k_noise, particles), theta
            ),
        )
        noise = jax.tree.map(lambda e, t: e * t, noise, trainable(optimizer, theta))
        thetas = jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, noise)
        state = restart(state, k_restart, thetas, data)
        accumulator = jax.tree.map(jnp.add, state.accumulator, noise)

        steps = state.step[:, None] + jnp.arange(truncation)
        inner, losses = _over_pairs(run, 2, 4)(
            thetas, state.inner, state.config, state.key, state.length, steps, data
        )
        counts = steps < state.length[:, None]  # (N, K)
        losses = jnp.where(counts, losses, 0.0)  # (2, N, K)
        difference = jnp.sum(losses[0] - losses[1], -1)
        finite = jnp.isfinite(difference)
        weight = jnp.where(finite, difference, 0.0) / (
            2 * std**2 * truncation * particles
        )
        gradient = jax.tree.map(
            lambda a: jnp.tensordot(weight, a, 1).astype(a.dtype), accumulator
        )
        step = steps[:, -1] + 1
        info = Info(
            meta_loss=jnp.sum(jnp.where(finite[:, None], losses, 0.0))
            / jnp.maximum(2 * jnp.sum(counts & finite[:, None]), 1),
            inner_steps=2 * jnp.sum(counts),
            episodes=jnp.sum(step >= state.length),
            nonfinite=jnp.sum(~finite),
        )
        state = state._replace(inner=inner, step=step, accumulator=accumulator)
        return gradient, state, info

    return MetaGradient(init, estimate)


def _placeholder(x: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), x.shape)
    return jnp.zeros(x.shape, x.dtype)


def _over_pairs(f: Callable, signed: int, shared: int) -> Callable:
    """Maps `f(*signed, *shared, data)` over both signs of N pairs.

    The first `signed` arguments lead with (2, N), the next `shared` with (N,). Nested,
    so that what both runs of a pair share (batches, keys) is computed once.
    """
    over_particles = jax.vmap(f, in_axes=(0,) * (signed + shared) + (None,))
    return jax.vmap(over_particles, in_axes=(0,) * signed + (None,) * (shared + 1))


def _where(condition: jax.Array, new: Any, old: Any, axis: int = 0) -> Any:
    """`jnp.where` on trees whose leaves have `condition`'s axis at `axis`."""

    def select(x, y):
        shape = [1] * x.ndim
        shape[axis] = condition.size
        return jnp.where(condition.reshape(shape), x, y)

    return jax.tree.map(select, new, old)
