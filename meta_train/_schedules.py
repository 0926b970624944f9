"""Truncation schedules: how long an inner run lasts."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp


class Schedule(Protocol):
    """`key -> length`, int32: the number of inner steps of a new episode."""

    def __call__(self, key: jax.Array) -> jax.Array: ...


def constant(length: int) -> Schedule:
    """Every episode has `length` steps.

    Example:
      >>> import jax
      >>> from l2o.meta_train import constant
      >>> int(constant(100)(jax.random.key(0)))
      100
    """
    _check(length, length)
    return lambda key: jnp.int32(length)


def log_uniform(low: int, high: int) -> Schedule:
    """Lengths whose logarithm is uniform between those of `low` and `high`.

    `floor(exp(U(log low, log high)))`: `high` itself is never drawn.

    Example:
      >>> import jax
      >>> from l2o.meta_train import log_uniform
      >>> 100 <= int(log_uniform(100, 2000)(jax.random.key(0))) < 2000
      True

    Source: google/learned_optimization, outer_trainers/truncation_schedule.py (2021).
    """
    _check(low, high)

    def schedule(key):
        exponent = jax.random.uniform(key, minval=math.log(low), maxval=math.log(high))
        return jnp.clip(jnp.floor(jnp.exp(exponent)), low, high).astype(jnp.int32)

    return schedule


def _check(low: int, high: int) -> None:
    if not 0 < low <= high:
        raise ValueError(f"episode lengths must be 0 < low <= high, not {low}, {high}")
