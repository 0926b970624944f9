"""Coordinate networks: an image as a function of the plane."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from l2o.names import check_known

from .._adapters import linen_functions
from .._base import Task, TaskFamily, log_scaled
from ..data import SPLITS, photograph


class Siren(nn.Module):
    """Sine layers with their own initialisation, then a linear layer.

    Source: Sitzmann et al., "Implicit neural representations with periodic activation
    functions" (2020).
    """

    outputs: int
    hidden: tuple[int, ...]
    frequency: float = 30.0

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((*self.hidden, self.outputs)):
            fan_in = x.shape[-1]
            bound = 1 / fan_in if i == 0 else math.sqrt(6 / fan_in) / self.frequency
            x = nn.Dense(
                width,
                kernel_init=_symmetric(bound),
                bias_init=_symmetric(1 / math.sqrt(fan_in)),
            )(x)
            if i < len(self.hidden):
                x = jnp.sin(self.frequency * x)
        return x


class Fourier(nn.Module):
    """Random Fourier features, then relu layers.

    Source: Tancik et al., "Fourier features let networks learn high frequency functions
    in low dimensional domains" (2020).
    """

    outputs: int
    hidden: tuple[int, ...]
    frequency: float = 5.0

    @nn.compact
    def __call__(self, x):
        # Fixed, the same for all tasks: part of the model's definition.
        waves = jax.random.normal(jax.random.key(0), (x.shape[-1], 16))
        x = 2 * jnp.pi * self.frequency * x @ waves
        x = jnp.concatenate([jnp.sin(x), jnp.cos(x)], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


def _symmetric(bound: float) -> Any:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


_MODELS = {"siren": Siren, "fourier": Fourier}


def coordinate_network(
    image: str = "china",
    model: Literal["siren", "fourier"] = "siren",
    hidden: Sequence[int] = (32, 32),
    *,
    image_size: int = 96,
    batch_size: int = 256,
    frequency: float | None = None,
    name: str = "",
) -> TaskFamily:
    r"""A network from coordinates to the colour of a photograph there.

    .. math:: L = \tfrac1B \sum_b |f_w(u_b, v_b) - c(u_b, v_b)|^2 / 3

    Every task is another crop of the photograph, a quarter of its area. Half of the
    pixels are for training, a sixth each for inner_valid, outer_valid and test.

    Args:
      image: "china", "flower" or "hopper", see `photograph`.
      model: sine layers, or relu layers over Fourier features.
      hidden: widths of the hidden layers.
      image_size: of the photograph; a crop has half of it in each direction.
      batch_size: pixels per inner step.
      frequency: of the first layer; 30 for sines (per unit of the first sum) and 5
        for Fourier features (deviation, periods per unit) by default.
      name: for reports.

    As a meta-loss it is `log_scaled` by the variance of the colours.

    Raises:
      ValueError: unknown image or model.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("coordinate_network", hidden=(16,), batch_size=32)

    Source: Sitzmann et al. (2020), Tancik et al. (2020).
    """
    check_known("model", model, _MODELS)
    given: dict[str, Any] = {} if frequency is None else {"frequency": frequency}
    module = _MODELS[model](3, tuple(hidden), **given)
    functions = linen_functions(module)
    photo = photograph(image, image_size)
    side = image_size // 2
    # Which pixels of a crop are whose: a fact of the family, not of a run.
    order = np.random.default_rng(0).permutation(side * side)
    parts = np.split(order, [n * len(order) // 6 for n in (3, 4, 5)])
    pixels = dict(zip(SPLITS, parts, strict=True))
    fewest = min(map(len, parts))
    if batch_size > fewest:
        raise ValueError(
            f"a batch of {batch_size} is larger than a split with {fewest} pixels: "
            "choose a smaller batch_size or a larger image_size"
        )

    def sample(key):
        return {"corner": jax.random.randint(key, (2,), 0, side + 1)}

    def task(config, data):
        def batch(key, split):
            index = jax.random.choice(key, jnp.asarray(pixels[split]), (batch_size,))
            row, col = index // side, index % side
            colours = data[config["corner"][0] + row, config["corner"][1] + col]
            at = jnp.stack([row, col], -1) / (side - 1) * 2 - 1
            return {"x": at, "y": colours}

        def loss(params, model_state, key, batch):
            colours, model_state = functions.apply(params, model_state, key, batch["x"])
            return jnp.mean((colours - batch["y"]) ** 2), (model_state, {})

        return Task(
            lambda key: functions.init(key, jnp.zeros((1, 2))),
            batch,
            loss,
            log_scaled(float(photo.var())),
        )

    with jax.ensure_compile_time_eval():
        data = jnp.asarray(photo)
    return TaskFamily(sample, task, data, name or f"{model}-{image}")
