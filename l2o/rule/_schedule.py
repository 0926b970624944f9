"""Learning rates: numbers, schedules, and how they fall in a run."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from ..names import check_known

Schedule = Literal["constant", "cosine"]


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
    check_known("schedule", schedule, known)
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
