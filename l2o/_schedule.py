"""The recurrent network of VeLO and Celo, and what it knows about the whole run."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

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


def check_schedule(schedule: str, factory: str, learning_rate: Any = 0.0) -> None:
    """Raises `ValueError` if it is unknown, or the rate has another schedule."""
    known = get_args(Schedule)
    if schedule not in known:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(known)}")
    if schedule != "constant":
        refuse_schedule(factory, learning_rate)


def refuse_schedule(factory: str, learning_rate: Any) -> None:
    """Raises `ValueError` for a schedule on top of one that the rule has."""
    if callable(learning_rate):
        raise ValueError(
            f"{factory} has a schedule of its own, and needs learning_rate to be a "
            "number, got a function: give its largest value, or chain "
            "`optax.scale_by_schedule` after the optimizer"
        )


def rate_at(learning_rate: optax.ScalarOrSchedule, count: jax.Array) -> Any:
    """The learning rate after `count` updates."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def decay_of(rate: Any, weight_decay: Any) -> Any:
    """What share of the parameters an update takes away."""
    if isinstance(weight_decay, float | int) and weight_decay == 0:
        return 0.0  # which costs nothing
    return rate * weight_decay


def run_length(schedule: Schedule, num_steps: jax.Array | None) -> jax.Array | None:
    """What a state tells of the run: its length, None for an endless one."""
    return None if schedule == "constant" else jnp.array(num_steps)


def scheduled(
    learning_rate: optax.ScalarOrSchedule,
    schedule: Schedule,
    count: jax.Array,
    num_steps: jax.Array | None,
) -> Any:
    """The rate after `count` updates; "cosine" is `warmup_cosine` of `num_steps`."""
    if schedule == "constant":
        return rate_at(learning_rate, count)
    assert num_steps is not None, "bind checks it"
    return learning_rate * warmup_cosine(count, num_steps)


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
