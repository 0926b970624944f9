"""Tensors as the matrices that their axes say, and back."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._axes import Axes, AxesArgument, axes_of, view_shape
from ._tensors import sees_whole_tensors, zeros_like


def view(
    x: jax.Array, axes: Axes, *, tables: bool = True, spread: bool = False
) -> jax.Array:
    """A tensor as (batch..., rows, columns), or as a vector.

    Args:
      x: the tensor.
      axes: of it.
      tables: whether an embedding is a matrix; if not, it is a vector.
      spread: whether the longest axes come first among inputs and outputs. These are
        the ones that are sharded, and a reshape keeps the sharding of a first axis.
    """
    if jnp.ndim(x) < 2:
        return x
    shape = view_shape(x.shape, axes, tables=tables)
    every = tuple(range(x.ndim))
    groups = [every] if len(shape) == 1 else _groups(x.shape, axes, spread)
    spec = jax.typeof(x).sharding.spec

    def reshape(x):
        return jnp.reshape(jnp.transpose(x, sum(groups, ())), shape)

    # What is sharded along its first axis alone stays so; the rest is gathered.
    parts = [spec[g[0]] if not any(spec[i] for i in g[1:]) else None for g in groups]
    return _on_mesh(reshape, x, jax.P(*parts))


def unview(
    x: jax.Array, like: jax.Array, axes: Axes, *, spread: bool = False
) -> jax.Array:
    """The inverse of `view`: of that shape, sharded like that."""
    if jnp.ndim(like) < 2:
        return x
    order: tuple[int, ...] = sum(_groups(like.shape, axes, spread), ())
    back = [order.index(i) for i in range(len(order))]

    def reshape(x):
        if x.ndim < 2:
            return jnp.reshape(x, like.shape)
        return jnp.transpose(jnp.reshape(x, [like.shape[i] for i in order]), back)

    return _on_mesh(reshape, x, jax.typeof(like).sharding.spec)


def _on_mesh(
    reshape: Callable[[jax.Array], jax.Array], x: jax.Array, spec: Any
) -> jax.Array:
    """On a mesh of explicit axes JAX asks how the result is to be sharded."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec) and not any(spec):
        return reshape(x)
    out = jax.NamedSharding(sharding.mesh, spec)
    return jax.sharding.auto_axes(reshape, out_sharding=out)(x)


def _groups(shape: tuple[int, ...], axes: Axes, spread: bool) -> list[tuple[int, ...]]:
    """Which axes each axis of the view is made of."""
    inputs, outputs = axes.inputs, axes.outputs
    if spread:
        inputs, outputs = (
            tuple(sorted(part, key=lambda i: -shape[i])) for part in (inputs, outputs)
        )
    return [*((i,) for i in axes.batch), inputs, outputs]


def viewed(
    make: Callable[[Any, Sequence[int]], optax.GradientTransformationExtraArgs],
    axes: AxesArgument,
    *,
    tables: bool,
    map_state: Callable[[Callable[[Any], Any], Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that sees every tensor as `view` returns it.

    Args:
      make: the transformation, from a tree like the parameters and the width of every
        table of embeddings in it; of what is no table the width is zero.
      axes: as in `axes_of`.
      tables: as in `view`.
      map_state: `(f, state) -> state`, which applies f to what of the state is a tree
        like the parameters and begins at zero. That has the shapes of the parameters
        and is sharded as they are. Without it the state has the shapes of the views.
    """

    def see(tree, described):
        spread = map_state is not None and not sees_whole_tensors()
        seen = functools.partial(view, tables=tables, spread=spread)
        return jax.tree.map(seen, tree, described)

    def restored(tree, like, described):
        spread = map_state is not None and not sees_whole_tensors()
        back = functools.partial(unview, spread=spread)
        return jax.tree.map(back, tree, like, described)

    def init(params):
        described = axes_of(params, axes)
        tx = make(params, _widths(params, described))
        state = tx.init(see(params, described))
        if map_state is None:
            return state

        def zeros(tree):
            return jax.tree.map(lambda x, p: zeros_like(p, x.dtype), tree, params)

        return map_state(zeros, state)

    def update(updates, state, params=None, **extra_args):
        described = axes_of(updates if params is None else params, axes)
        seen = None if params is None else see(params, described)
        tx = make(updates, _widths(updates, described))
        if map_state is not None:
            state = map_state(lambda tree: see(tree, described), state)
        steps, state = tx.update(see(updates, described), state, seen, **extra_args)
        if map_state is not None:
            state = map_state(lambda tree: restored(tree, updates, described), state)
        return restored(steps, updates, described), state

    return optax.GradientTransformationExtraArgs(init, update)


def _widths(tree: Any, described: Any) -> list[int]:
    """Of the rows of tables; zero for what is no table."""
    axes = jax.tree.leaves(described, is_leaf=lambda x: isinstance(x, Axes))
    return [
        math.prod(jnp.shape(x)[i] for i in each.outputs) * (each.role == "embedding")
        for x, each in zip(jax.tree.leaves(tree), axes, strict=True)
    ]
