"""Strengths: a number for all tasks, or a range that every task draws its own from."""

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Strength = float | tuple[float, float]
Count = int | tuple[int, int]


def check_share(name: str, given: Strength) -> None:
    """Raises `ValueError` unless all is in [0, 1]."""
    low, high = _ends(given)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"{name} must be a number from 0 to 1, or a pair of them, the smaller one "
            f"first; not {given}"
        )


def check_positive(name: str, given: Strength) -> None:
    """Raises `ValueError` unless all is finite and > 0."""
    low, high = _ends(given)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"{name} must be a positive number, or a pair of them, the smaller one "
            f"first; not {given}"
        )


def check_count(name: str, given: Count) -> None:
    """Raises `ValueError` unless all is whole and >= 1."""
    low, high = _ends(given)
    whole = isinstance(low, numbers.Integral) and isinstance(high, numbers.Integral)
    if not whole or low < 1 or (isinstance(given, Sequence) and high <= low):
        raise ValueError(
            f"{name} must be a whole number >= 1, or a pair (low, high) of them with "
            f"low < high, of which high is never drawn; not {given}"
        )


def uniform(key: jax.Array, given: Strength) -> jax.Array:
    """The number, or a draw from U(low, high)."""
    if isinstance(given, Sequence):
        return jax.random.uniform(key, minval=given[0], maxval=given[1])
    return jnp.asarray(given, float)


def log_uniform(key: jax.Array, given: Strength) -> jax.Array:
    """The number, or a draw whose logarithm is uniform."""
    if isinstance(given, Sequence):
        return jnp.exp(uniform(key, (math.log(given[0]), math.log(given[1]))))
    return jnp.asarray(given, float)


def log_integer(key: jax.Array, given: tuple[int, int]) -> jax.Array:
    """`floor` of a log-uniform draw from [low, high)."""
    drawn = jnp.floor(log_uniform(key, given)).astype(jnp.int32)
    # Rounding could reach high, or miss low.
    return jnp.clip(drawn, given[0], given[1] - 1)


def _ends(given: Strength) -> tuple[float, float]:
    if not isinstance(given, Sequence):
        return given, given
    if len(given) != 2:
        raise ValueError(f"a range is a pair (low, high), not {given}")
    return given
