"""How far the loss stands above its running minimum, on ten time scales."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOSS_FEATURES = 9
_SCALES = LOSS_FEATURES + 1


class LossBuffer(NamedTuple):
    """Ten running means of the loss and the least that each, corrected, has been."""

    mean: jax.Array  # shape (10,)
    minimum: jax.Array  # shape (10,)
    # Kept as state: where XLA sees exp(-1/h)^n, it computes exp(-n/h), and the features
    # are differences so small that this rounding shows in the parameters.
    decays: jax.Array  # shape (10,)


def init_loss_buffer(num_steps: jax.Array) -> LossBuffer:
    """An empty buffer; decays are `exp(-1/h)`, h from 10 steps to `num_steps`."""
    scales = jnp.logspace(1, jnp.log10(num_steps), _SCALES, dtype=jnp.float32)
    return LossBuffer(
        jnp.zeros(_SCALES, jnp.float32),
        jnp.full(_SCALES, 999999999999.0, jnp.float32),
        jnp.exp(-1 / scales),
    )


def update_loss_buffer(
    buffer: LossBuffer, loss: jax.Array, count: jax.Array
) -> tuple[LossBuffer, jax.Array]:
    """The buffer with one loss more, and nine features in [-1, 1].

    With c_i the bias-corrected means and n_i their minima, feature i is
    `clip((c_i - n_i) / max(1e-8, c_{i+1} - n_i) - 1, -1, 1)`; zero for the first two
    losses. A loss above twice the largest mean is cut to that first.

    Args:
      count: losses seen before this one, shape ().

    Source: "VeLO: Training versatile learned optimizers by scaling up" (Metz et al.,
    2022).
    """
    seen = count + 1
    decays = buffer.decays
    correction = 1 - decays**seen
    # One power too many for the old means, as published.
    largest = jnp.max(buffer.mean / correction)
    largest = jnp.where(count == 0, loss, largest)
    loss = jnp.minimum(2 * jnp.abs(largest), loss)
    mean = buffer.mean * decays + loss * (1 - decays)
    corrected = mean / correction
    minimum = jnp.minimum(buffer.minimum, corrected)
    slower, faster, least = corrected[1:], corrected[:-1], minimum[:-1]
    raw = (faster - least) / jnp.maximum(1e-8, slower - least) - 1
    features = jnp.where(seen <= 2, 0.0, jnp.clip(raw, -1, 1))
    return LossBuffer(mean, minimum, decays), features
