"""The inverse of positive definite matrices, made of products.

LAPACK is no faster at it. JAX's calls of it wait for threads of the pool that they run
on, so that two at a time can wait for ever on two cores.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK = 64
_LARGE_BLOCK, _LARGE_ABOVE = 128, 512


@jax.custom_jvp
def inverse(x: jax.Array) -> jax.Array:
    """Of positive definite matrices, shape (..., n, n)."""
    return _by_blocks(x, _LARGE_BLOCK if x.shape[-1] > _LARGE_ABOVE else _BLOCK)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    y = inverse(*primals)
    return y, -product(product(y, *tangents), y)


def _by_blocks(x: jax.Array, block: int) -> jax.Array:
    """By Gauss and Jordan, a block of rows and columns at a time.

    Positive definite matrices need no pivoting.
    """
    n = x.shape[-1]
    if block == _BLOCK and n <= _BLOCK:
        return _gauss_jordan(x)
    pivot_of = _gauss_jordan
    if block > _BLOCK:
        pivot_of = functools.partial(_by_blocks, block=_BLOCK)
    missing = -n % block
    if missing:
        around = [(0, 0)] * (x.ndim - 2) + [(0, missing)] * 2
        more = jnp.arange(n + missing) >= n
        x = jnp.pad(x, around) + jnp.diag(more.astype(x.dtype))

    def eliminate(i, x):
        start = i * block
        column = lax.dynamic_slice_in_dim(x, start, block, -1)
        pivot = pivot_of(lax.dynamic_slice_in_dim(column, start, block, -2))
        row = product(pivot, lax.dynamic_slice_in_dim(x, start, block, -2))
        row = lax.dynamic_update_slice_in_dim(row, pivot, start, -1)
        nothing = jnp.zeros_like(column)
        x = lax.dynamic_update_slice_in_dim(x, nothing, start, -1)
        x = x - product(column, row)
        return lax.dynamic_update_slice_in_dim(x, row, start, -2)

    x = lax.fori_loop(0, x.shape[-1] // block, eliminate, x)
    return x[..., :n, :n]


def _gauss_jordan(x: jax.Array) -> jax.Array:
    rows = jnp.arange(x.shape[-1])

    def eliminate(k, x):
        here = rows == k
        column = lax.dynamic_index_in_dim(x, k, -1)
        pivot = 1 / lax.dynamic_index_in_dim(column, k, -2)
        row = jnp.where(here, pivot, lax.dynamic_index_in_dim(x, k, -2) * pivot)
        others = jnp.where(here, 0.0, x) - column * row
        return jnp.where(here[:, None], row, others)

    return lax.fori_loop(0, x.shape[-1], eliminate, x)


def product(y: jax.Array, z: jax.Array) -> jax.Array:
    """`y z` of the last two axes, in float32 on every platform."""
    return jnp.matmul(y, z, precision=lax.Precision.HIGHEST)
