"""Learning rates: numbers, schedules, and how they fall in a run."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ..names import check_known

Schedule = Literal["constant", "cosine"]
USUAL_STEPS = 1000.0  # what a run without an end is warmed up like


class Fall(NamedTuple):
    """How far a rate has come on its way to zero.

    The end of a run is what `bind` was told, until `l2o.cool_down` or `l2o.extend_run`
    set another.
    """

    asked: jax.Array  # shape (), bool: whether the end is no longer that of `bind`
    share: jax.Array  # shape (), float32: of the fall, what is behind; 1 at the end


def start_fall() -> Fall:
    """Of a run that begins."""
    return Fall(jnp.zeros([], jnp.bool_), jnp.zeros([], jnp.float32))


def usual_length(num_steps: jax.Array) -> jax.Array:
    """The run that everything is relative to: of 1000 steps where there is no end."""
    return jnp.where(jnp.isfinite(num_steps), num_steps, USUAL_STEPS)


def share_of_fall(state: Any, num_steps: jax.Array, warmup: Any = 0.05) -> jax.Array:
    """What of the fall is behind: zero until it begins, and in an endless run.

    Args:
      state: with `count` and `fall`.
      num_steps, warmup: as for `warmup_cosine`.
    """
    planned = _planned(state.count, num_steps, warmup)
    return jnp.where(state.fall.asked, state.fall.share, planned)


def next_fall(state: Any, share: jax.Array) -> Fall:
    """The fall after an update; it ends after `state.num_steps` of them.

    Args:
      state: with `count`, `num_steps` and `fall`.
      share: what was behind before the update.
    """
    left = jnp.maximum(state.num_steps - state.count, 1.0)
    share = lax.stop_gradient(share)
    return Fall(state.fall.asked, share + (1 - share) / left)


def warmup_cosine(
    count: jax.Array,
    num_steps: jax.Array,
    *,
    warmup: Any = 0.05,
    power: Any = None,
    share: Any = None,
) -> jax.Array:
    """Up to 1 in a part of the run, then a cosine to 0 at its end; shape ().

    Of a run without an end: up to a half, which is a cosine's mean, in 50 steps.

    Args:
      count: updates made before this one.
      num_steps: of the run; infinite without an end.
      warmup: that part, a twentieth by default.
      power: of the cosine; None for one.
      share: of the fall, what is behind; None for what count tells.
    """
    rise = (count + 1) / jnp.maximum(warmup * usual_length(num_steps), 1.0)
    after = _planned(count, num_steps, warmup) if share is None else share
    fall = 0.5 + 0.5 * jnp.cos(jnp.pi * after)
    if power is not None:
        fall = jnp.maximum(fall, 1e-9) ** power  # finite derivatives at the end
    return jnp.where(jnp.isfinite(num_steps), 1.0, 0.5) * jnp.minimum(rise, fall)


def _planned(count: jax.Array, num_steps: jax.Array, warmup: Any) -> jax.Array:
    return jnp.clip((count / num_steps - warmup) / (1 - warmup), 0.0, 1.0)


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


def run_length(schedule: Schedule, num_steps: Any) -> jax.Array | None:
    """What a state tells of the run: its length, None for a constant rate."""
    return None if schedule == "constant" else jnp.array(num_steps)


def run_fall(schedule: Schedule) -> Fall | None:
    """The fall of a run that begins, None for a constant rate."""
    return None if schedule == "constant" else start_fall()


def scheduled(
    learning_rate: optax.ScalarOrSchedule,
    schedule: Schedule,
    state: Any,
    num_steps: jax.Array | None,
) -> tuple[Any, Fall | None]:
    """The rate at a state, and the fall after it.

    Args:
      schedule: "cosine" is `warmup_cosine` of `num_steps`.
      state: with `count`, `num_steps` and `fall`.
    """
    if schedule == "constant":
        return rate_at(learning_rate, state.count), None
    assert num_steps is not None, "bind checks it"
    share = share_of_fall(state, num_steps)
    rate = learning_rate * warmup_cosine(state.count, num_steps, share=share)
    return rate, next_fall(state, share)
