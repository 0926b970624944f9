"""Truncation schedules: how long an inner run lasts."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Schedule(NamedTuple):
    """Lengths of episodes.

    Attributes:
      draw: `(key, outer step) -> length`, int32.
      minimum, maximum: no length is smaller, or greater.
    """

    draw: Callable[[jax.Array, jax.Array], jax.Array]
    minimum: int
    maximum: int

    def __call__(self, key: jax.Array, step: jax.Array | int = 0) -> jax.Array:
        """The number of inner steps of an episode that begins in outer step `step`."""
        return self.draw(key, jnp.asarray(step))


def constant(length: int) -> Schedule:
    """Every episode has `length` steps.

    Example:
      >>> import jax
      >>> from l2o.meta_train import constant
      >>> int(constant(100)(jax.random.key(0)))
      100
    """
    _check(length, length)
    return Schedule(lambda key, step: jnp.int32(length), length, length)


def log_uniform(
    low: int,
    high: int,
    *,
    start: tuple[int, int] | None = None,
    over: int = 0,
) -> Schedule:
    """Lengths whose logarithm is uniform between those of `low` and `high`.

    `floor(exp(U(log low, log high)))`: `high` itself is never drawn.

    Args:
      low, high: the bounds.
      start: (low, high) at outer step 0, for bounds that grow; None for constant ones.
      over: outer steps in which the bounds go from `start` to (low, high), linearly.

    Raises:
      ValueError: bounds that are not 0 < low <= high, or `start` without `over`.

    Example:
      >>> import jax
      >>> from l2o.meta_train import log_uniform
      >>> 100 <= int(log_uniform(100, 2000)(jax.random.key(0))) < 2000
      True

    Source: google/learned_optimization, outer_trainers/truncation_schedule.py (2021).
    """
    _check(low, high)
    if start is None:

        def draw(key, step):
            exponent = jax.random.uniform(
                key, minval=math.log(low), maxval=math.log(high)
            )
            return jnp.clip(jnp.floor(jnp.exp(exponent)), low, high).astype(jnp.int32)

        return Schedule(draw, low, high)

    _check(*start)
    if over < 1:
        raise ValueError("a log_uniform schedule with a start needs over >= 1")
    start_low, start_high = start

    def draw_growing(key, step):
        done = jnp.clip(step / over, 0.0, 1.0)
        bounds = jnp.array([start_low, start_high], jnp.float32)
        bounds = bounds + done * (jnp.array([low, high], jnp.float32) - bounds)
        exponent = jax.random.uniform(
            key, minval=jnp.log(bounds[0]), maxval=jnp.log(bounds[1])
        )
        length = jnp.floor(jnp.exp(exponent))
        return jnp.clip(length, jnp.floor(bounds[0]), bounds[1]).astype(jnp.int32)

    return Schedule(draw_growing, min(low, start_low), max(high, start_high))


def growing(start: int, end: int, over: int, *, jitter: float = 0.2) -> Schedule:
    """Lengths that grow with the outer step, linearly from `start` to `end`.

    .. math:: T = (1 + u)\\,\\bigl(a + (b - a) \\min(s / S, 1)\\bigr), \\quad
              u \\sim U(-j, j)

    Args:
      start, end: a and b, inner steps. No episode is longer than `max(a, b)`.
      over: S, outer steps until `end` is reached.
      jitter: j, from 0 to 1 (exclusive).

    Raises:
      ValueError: lengths that are not positive, over < 1, jitter out of range.

    Example:
      >>> import jax
      >>> from l2o.meta_train import growing
      >>> schedule = growing(10, 1000, over=100, jitter=0.0)
      >>> [int(schedule(jax.random.key(0), s)) for s in (0, 50, 200)]
      [10, 505, 1000]

    Source: "Understanding and correcting pathologies in the training of learned
    optimizers" (Metz et al., 2019): 10 to 10 000 over 20 000 outer steps.
    """
    _check(start, start)
    _check(end, end)
    if over < 1 or not 0 <= jitter < 1:
        raise ValueError(
            f"growing needs over >= 1 and 0 <= jitter < 1, not {over}, {jitter}"
        )
    maximum = max(start, end)
    minimum = math.floor((1 - jitter) * min(start, end))

    def draw(key, step):
        middle = start + (end - start) * jnp.clip(step / over, 0.0, 1.0)
        factor = jax.random.uniform(key, minval=1 - jitter, maxval=1 + jitter)
        length = jnp.floor(middle * factor + 1e-3)  # 1e-3: a whole number stays whole
        return jnp.clip(length, max(minimum, 1), maximum).astype(jnp.int32)

    return Schedule(draw, max(minimum, 1), maximum)


def _check(low: int, high: int) -> None:
    if not 0 < low <= high:
        raise ValueError(f"episode lengths must be 0 < low <= high, not {low}, {high}")
