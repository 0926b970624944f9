"""The recurrent network of VeLO and Celo, and what it knows about the whole run."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ._loss_features import LOSS_FEATURES
from ._recurrent import LSTMState, init_linear, init_lstm, linear, lstm

_FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
RUN_FEATURES = len(_FRACTIONS) + LOSS_FEATURES
Schedule = Literal["constant", "cosine"]


def fraction_embedding(fraction: jax.Array) -> jax.Array:
    """`tanh(10 (fraction - c))` for nine parts c of the training run; shape (9,)."""
    return jnp.tanh(10 * (fraction - jnp.asarray(_FRACTIONS, jnp.float32)))


def warmup_cosine(
    count: jax.Array, num_steps: jax.Array, *, warmup: Any = 0.05, power: Any = None
) -> jax.Array:
    """Up to 1 in a part of the run, then a cosine to 0 at its end; shape ().

    Args:
      count: updates made before this one.
      num_steps: of the run.
      warmup: that part, a twentieth by default.
      power: of the cosine; None for one.
    """
    fraction = count / num_steps
    rise = (count + 1) / jnp.maximum(warmup * num_steps, 1.0)
    after = jnp.clip((fraction - warmup) / (1 - warmup), 0.0, 1.0)
    fall = 0.5 + 0.5 * jnp.cos(jnp.pi * after)
    if power is not None:
        fall = jnp.maximum(fall, 1e-9) ** power  # finite derivatives at the end
    return jnp.minimum(rise, fall)


def check_schedule(schedule: str) -> None:
    """Raises `ValueError` if it is unknown."""
    known = get_args(Schedule)
    if schedule not in known:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(known)}")


def scheduled(
    rate: Any, schedule: Schedule, count: jax.Array, num_steps: jax.Array | None
) -> Any:
    """The rate after `count` updates; "cosine" is `warmup_cosine` of `num_steps`."""
    if schedule == "constant":
        return rate
    assert num_steps is not None, "bind checks it"
    return rate * warmup_cosine(count, num_steps)


def init_mixing_lstm(
    key: jax.Array, inputs: int, size: int, *, mix_layers: bool, dead_mix_layer: bool
) -> dict[str, Any]:
    """Weights of `mixing_lstm`: `lstm_init`, `mix` and `lstm`.

    `dead_mix_layer` keeps the layer `mix/dead`, which published files hold and which
    no output depends on. Without `mix_layers` the LSTM sees the features themselves.
    """
    keys = jax.random.split(key, 4)
    zeros = jnp.zeros((1, size), jnp.float32)
    theta: dict[str, Any] = {"lstm_init": {"hidden": zeros, "cell": zeros}}
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
