"""Linear layers, the LSTM cell, and its state with a row per tensor."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Weights = dict[str, jax.Array]  # "w" of shape (in, out) and "b" of shape (out,)


class LSTMState(NamedTuple):
    """Two arrays of shape (..., size)."""

    hidden: jax.Array
    cell: jax.Array


def init_linear(key: jax.Array, inputs: int, outputs: int) -> Weights:
    """Weights of standard deviation `1/sqrt(inputs)` cut at two deviations; zero bias.

    The variance is not corrected for the cut, as in the published optimizers.
    """
    w = jax.random.truncated_normal(key, -2, 2, (inputs, outputs), jnp.float32)
    return {"w": w / math.sqrt(inputs), "b": jnp.zeros(outputs, jnp.float32)}


def linear(theta: Weights, x: jax.Array) -> jax.Array:
    """`x w + b` over the last axis."""
    return jnp.matmul(x, theta["w"], precision=lax.Precision.HIGHEST) + theta["b"]


def init_lstm(key: jax.Array, inputs: int, size: int) -> Weights:
    """One linear layer from `[x, hidden]` to the gates i, g, f, o, in this order."""
    return init_linear(key, inputs + size, 4 * size)


def lstm(
    theta: Weights, x: jax.Array, state: LSTMState, forget_bias: float = 1.0
) -> LSTMState:
    """One step of an LSTM whose forget gate has `forget_bias` added to its bias.

    `c' = sigmoid(f + 1) c + sigmoid(i) tanh(g)`, `h' = sigmoid(o) tanh(c')`.

    Args:
      theta: from `init_lstm`.
      x: shape (..., inputs).
      state: shapes (..., size); the output of the cell is the new `hidden`.
      forget_bias: the 1 above, as dm-haiku and Sonnet have it; PyTorch has none.

    Source: "Long short-term memory" (Hochreiter & Schmidhuber, 1997), in the form of
    dm-haiku.
    """
    gates = linear(theta, jnp.concatenate([x, state.hidden], -1))
    i, g, f, o = jnp.split(gates, 4, -1)
    cell = jax.nn.sigmoid(f + forget_bias) * state.cell
    cell = cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def init_rows(initial: dict[str, jax.Array], tensors: int) -> LSTMState:
    """Theta's initial state, shapes (1, size), repeated for each tensor."""
    return LSTMState(*(repeated(initial[k], tensors) for k in LSTMState._fields))


def repeated(row: jax.Array, times: int) -> jax.Array:
    """Rows of shape (size,) or (1, size); never theta's own buffer."""
    return jnp.zeros((times, row.shape[-1]), jnp.float32) + row


def moments(planes: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over all elements of arrays of one shape."""
    n = len(planes)
    mean = sum(map(jnp.mean, planes), jnp.float32(0)) / n
    return mean, sum((jnp.mean((x - mean) ** 2) for x in planes), jnp.float32(0)) / n


def log_magnitude(x: jax.Array) -> jax.Array:
    """`clip(log(|x| + 1e-8), -5, 5)`."""
    return jnp.clip(jnp.log(jnp.abs(x) + 1e-8), -5, 5)
