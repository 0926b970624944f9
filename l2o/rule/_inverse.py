"""The inverse of positive definite matrices, made of products.

LAPACK is no faster at it. JAX's calls of it wait for threads of the pool that they run
on, so that two at a time can wait for ever on two cores.
"""

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK = 64
_HALVED_ABOVE = 512  # by halves takes fewer products, but longer to compile


@jax.custom_jvp
def inverse(x: jax.Array) -> jax.Array:
    """Of positive definite matrices, shape (..., n, n)."""
    n = x.shape[-1]
    if n <= _HALVED_ABOVE:
        return _by_blocks(x)
    half = n // 2
    a, b, d = x[..., :half, :half], x[..., :half, half:], x[..., half:, half:]
    first = inverse(a)
    carried = product(first, b)
    second = inverse(d - product(b.mT, carried))
    corner = product(carried, second)
    top = jnp.concatenate([first + product(corner, carried.mT), -corner], -1)
    return jnp.concatenate([top, jnp.concatenate([-corner.mT, second], -1)], -2)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    y = inverse(*primals)
    return y, -product(product(y, *tangents), y)


def _by_blocks(x: jax.Array) -> jax.Array:
    """By Gauss and Jordan, a block of rows and columns at a time.

    Positive definite matrices need no pivoting.
    """
    n = x.shape[-1]
    if n <= _BLOCK:
        return _gauss_jordan(x)
    missing = -n % _BLOCK
    if missing:
        around = [(0, 0)] * (x.ndim - 2) + [(0, missing)] * 2
        more = jnp.arange(n + missing) >= n
        x = jnp.pad(x, around) + jnp.diag(more.astype(x.dtype))

    def eliminate(i, x):
        start = i * _BLOCK
        column = lax.dynamic_slice_in_dim(x, start, _BLOCK, -1)
        pivot = _gauss_jordan(lax.dynamic_slice_in_dim(column, start, _BLOCK, -2))
        row = product(pivot, lax.dynamic_slice_in_dim(x, start, _BLOCK, -2))
        row = lax.dynamic_update_slice_in_dim(row, pivot, start, -1)
        nothing = jnp.zeros_like(column)
        x = lax.dynamic_update_slice_in_dim(x, nothing, start, -1)
        x = x - product(column, row)
        return lax.dynamic_update_slice_in_dim(x, row, start, -2)

    x = lax.fori_loop(0, x.shape[-1] // _BLOCK, eliminate, x)
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
