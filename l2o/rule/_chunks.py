"""Elementwise functions of large tensors, chunk by chunk along one axis.

What such a function computes on its way then takes the memory of a chunk, not of
several tensors.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CHUNK = 2**16  # elements; a core's cache holds some planes of that size


class Chunks(NamedTuple):
    """`whole` chunks of `size` along `axis`, and one of `rest`."""

    axis: int
    whole: int
    size: int
    rest: int


def cut(shape: tuple[int, ...], elements: int = CHUNK) -> Chunks | None:
    """Chunks of at most about so many elements; None for a tensor of less than two."""
    wanted = math.prod(shape) // elements
    if wanted < 2:
        return None
    # The first axis that is long enough, so that a chunk is of long pieces of memory.
    long = [i for i, n in enumerate(shape) if n >= wanted]
    axis = long[0] if long else max(range(len(shape)), key=lambda i: shape[i])
    size = max(shape[axis] // wanted, 1)
    return Chunks(axis, shape[axis] // size, size, shape[axis] % size)


def mean_over(chunks: Chunks, mean: Callable[[Any], Any], tree: Any) -> Any:
    """`mean(tree)`, means over the axis of something, from those of chunks.

    Args:
      chunks: from `cut`.
      mean: of trees like this one; a tree.
      tree: of arrays of the tensor's rank, of its size or one along the axis.
    """

    def weighted(start, length):
        share = length / (chunks.whole * chunks.size + chunks.rest)
        means = mean(_part(tree, chunks.axis, start, length))
        return jax.tree.map(lambda x: x * share, means)

    def add(i, total):
        more = weighted(i * chunks.size, chunks.size)
        return jax.tree.map(jnp.add, total, more)

    total = lax.fori_loop(1, chunks.whole, add, weighted(0, chunks.size))
    if chunks.rest:
        rest = weighted(chunks.whole * chunks.size, chunks.rest)
        total = jax.tree.map(jnp.add, total, rest)
    return total


def map_over(
    chunks: Chunks, f: Callable[[Any], jax.Array], tree: Any, start: Any = 0.0
) -> jax.Array:
    """`f(tree)`, an array of the tensor's shape, from its chunks.

    Args:
      chunks: from `cut`.
      f: of trees like this one; elementwise along the axis.
      tree: as in `mean_over`.
      start: any scalar. XLA makes room for the result when it is known.
    """

    def write(out, first, length):
        new = f(_part(tree, chunks.axis, first, length))
        return lax.dynamic_update_slice_in_dim(out, new, first, chunks.axis)

    like = jax.eval_shape(f, tree)
    out = lax.fori_loop(
        0,
        chunks.whole,
        lambda i, out: write(out, i * chunks.size, chunks.size),
        jnp.full(like.shape, start, like.dtype),
    )
    if chunks.rest:
        out = write(out, chunks.whole * chunks.size, chunks.rest)
    return out


def _part(tree: Any, axis: int, start: Any, length: int) -> Any:
    def part(x):
        if x.shape[axis] == 1:
            return x
        return lax.dynamic_slice_in_dim(x, start, length, axis)

    return jax.tree.map(part, tree)
