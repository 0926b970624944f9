"""The recurrent network of VeLO and Celo, and what it knows about the whole run."""

from typing import Any

import jax
import jax.numpy as jnp

from ._cell import LSTMState, init_linear, init_lstm, linear, lstm
from ._loss_features import LOSS_FEATURES

_FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
RUN_FEATURES = len(_FRACTIONS) + LOSS_FEATURES


def fraction_embedding(fraction: jax.Array) -> jax.Array:
    """`tanh(10 (fraction - c))` for nine parts c of the training run; shape (9,)."""
    return jnp.tanh(10 * (fraction - jnp.asarray(_FRACTIONS, jnp.float32)))


def init_mixing_lstm(
    key: jax.Array, inputs: int, size: int, *, mix_layers: bool, dead_mix_layer: bool
) -> dict[str, Any]:
    """Weights of `mixing_lstm`: `lstm_init`, `mix` and `lstm`.

    `dead_mix_layer` keeps the layer `mix/dead`, which published files hold and which
    no output depends on. Without `mix_layers` the LSTM sees the features themselves.
    """
    keys = jax.random.split(key, 4)
    # Arrays of their own, so that theta can be donated.
    start = {name: jnp.zeros((1, size), jnp.float32) for name in LSTMState._fields}
    theta: dict[str, Any] = {"lstm_init": start}
    if mix_layers:
        names = ["pooled", "direct"] + ["dead"] * dead_mix_layer
        theta["mix"] = {
            name: init_linear(k, inputs, size)
            for name, k in zip(names, keys[1:], strict=False)
        }
    theta["lstm"] = init_lstm(keys[0], size if mix_layers else inputs, size)
    return theta


def mixing_lstm(theta: dict[str, Any], x: jax.Array, state: LSTMState) -> LSTMState:
    """One step: rows exchange what they know by a maximum, then an LSTM per row.

    `y = direct(x) + max_rows relu(pooled(x))`, `state' = LSTM(y, state)`.

    Args:
      theta: from `init_mixing_lstm`.
      x: shape (rows, inputs).
      state: shapes (rows, size).
    """
    if "mix" in theta:
        pooled = jax.nn.relu(linear(theta["mix"]["pooled"], x))
        x = linear(theta["mix"]["direct"], x) + jnp.max(pooled, 0, keepdims=True)
    return lstm(theta["lstm"], x, state)
