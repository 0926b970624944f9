"""A stack of LSTMs that runs on every coordinate by itself, weights shared by all."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._tensors import sharded_like
from ._cell import LSTMState, Weights, lstm


class StackState(NamedTuple):
    """The states of a stack, from the input up: a tree like params for each LSTM.

    Leaves have shape `param.shape + (size,)` and are float32.
    """

    hidden: tuple[Any, ...]
    cell: tuple[Any, ...]


def init_stack(
    params: Any, layers: int, size: int, *, scale: float = 0.0, seed: int = 0
) -> StackState:
    """Zero states, or normal ones of standard deviation `scale`.

    A function of the shapes and the seed alone: every tensor folds its position in the
    tree into the key, so that what wraps a transformation does not change the draw.
    """
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)

    def draw(index, shape):
        shape = (2, layers, *shape, size)
        if not scale:
            return jnp.zeros(shape, jnp.float32)
        key = jax.random.fold_in(jax.random.key(seed), index)
        return scale * jax.random.normal(key, shape, jnp.float32)

    drawn = [draw(i, jnp.shape(leaf)) for i, leaf in enumerate(leaves)]
    return StackState(
        *(
            tuple(
                structure.unflatten(
                    [
                        sharded_like(x[part, layer], leaf)
                        for x, leaf in zip(drawn, leaves, strict=True)
                    ]
                )
                for layer in range(layers)
            )
            for part in range(2)
        )
    )


def apply_stack(
    theta: Sequence[Weights],
    x: jax.Array,
    hidden: Sequence[jax.Array],
    cell: Sequence[jax.Array],
    forget_bias: float = 1.0,
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """One step of every LSTM, the first on x and each other on the one below.

    Args:
      theta: weights of each LSTM.
      x: shape (..., inputs).
      hidden, cell: per LSTM, shape (..., size).
      forget_bias: as in `lstm`.

    Returns:
      The output of the last LSTM, and the new hidden and cell states.
    """
    states = []
    for weights, old_hidden, old_cell in zip(theta, hidden, cell, strict=True):
        # `map_tensors` gives a scalar as one coordinate; its state is not reshaped.
        shape = (*x.shape[:-1], old_hidden.shape[-1])
        state = LSTMState(old_hidden.reshape(shape), old_cell.reshape(shape))
        states.append(lstm(weights, x, state, forget_bias))
        x = states[-1].hidden
    return x, tuple(s.hidden for s in states), tuple(s.cell for s in states)


def init_sonnet_lstm(key: jax.Array, inputs: int, size: int) -> Weights:
    """Weights *and biases* of deviation `1/sqrt(inputs + size)`, cut at two deviations.

    Gates in the order i, g, f, o, which Sonnet calls i, j, f, o.
    """
    w_key, b_key = jax.random.split(key)
    scale = 1 / math.sqrt(inputs + size)
    shapes = {"w": (inputs + size, 4 * size), "b": (4 * size,)}
    return {
        name: scale * jax.random.truncated_normal(k, -2, 2, shapes[name], jnp.float32)
        for name, k in (("w", w_key), ("b", b_key))
    }


def init_torch_linear(key: jax.Array, inputs: int, outputs: int) -> Weights:
    """Weights and biases uniform within `1/sqrt(inputs)`."""
    return _uniform(
        key, {"w": (inputs, outputs), "b": (outputs,)}, 1 / math.sqrt(inputs)
    )


def init_torch_lstm(key: jax.Array, inputs: int, size: int) -> Weights:
    """Weights uniform within `1/sqrt(size)`, with PyTorch's second bias `b_hidden`.

    Gates in the order i, g, f, o (PyTorch's own is i, f, g, o): `w` stacks the
    transposed `weight_ih` and `weight_hh`, `b` is `bias_ih`, `b_hidden` is `bias_hh`.
    """
    shapes = {"w": (inputs + size, 4 * size), "b": (4 * size,), "b_hidden": (4 * size,)}
    return _uniform(key, shapes, 1 / math.sqrt(size))


def merge_biases(theta: Weights) -> Weights:
    """The weights of `lstm` that do what those of `init_torch_lstm` do."""
    return {"w": theta["w"], "b": theta["b"] + theta["b_hidden"]}


def _uniform(key, shapes, bound):
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
