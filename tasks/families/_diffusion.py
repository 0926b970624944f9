"""Diffusion models of images: a U-net learns to tell noise from image."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from .._adapters import Functions, from_functions, linen_functions
from .._base import TaskFamily, log_scaled
from .._choices import Activation, Choices
from ..data import Dataset, load_all
from ..models import UNet


class Denoised(NamedTuple):
    """What the loss needs, both of the images' shape (b, h, w, c)."""

    predicted: jax.Array
    noise: jax.Array


class _Diffusion(nn.Module):
    activation: Activation
    channels: tuple[int, ...]
    groups: int

    @nn.compact
    def __call__(self, x):
        count, key = len(x), self.make_rng("dropout")
        # Spread over (0, 1), so that batches differ less.
        time = jnp.mod(jax.random.uniform(key) + jnp.arange(count) / count, 1.0)
        noise = jax.random.normal(self.make_rng("dropout"), x.shape)
        angle = (time * jnp.pi / 2)[:, None, None, None]
        noisy = jnp.cos(angle) * (2 * x - 1) + jnp.sin(angle) * noise
        unet = UNet(self.activation, self.channels, self.groups, name="unet")
        return Denoised(unet(noisy, time), noise)


def diffusion(
    datasets: Sequence[str | Dataset] = ("patches",),
    channels: Sequence[int] = (16, 32, 64),
    *,
    groups: int = 8,
    image_size: int = 8,
    grey: bool = True,
    batch_size: int = 32,
    activation: str | Sequence[str] = "silu",
    initializer: str | Sequence[str] | None = None,
    init_scale: tuple[float, float] = (1.0, 1.0),
    name: str = "",
) -> TaskFamily:
    r"""A U-net that predicts the noise in images, as diffusion models are trained.

    .. math:: L = \mathrm{mean}\,(f_w(x_t, t) - \epsilon)^2, \quad
              x_t = \cos(\tfrac{\pi t}{2})\, x + \sin(\tfrac{\pi t}{2})\, \epsilon,
              \quad \epsilon \sim N(0, 1)

    Images are in [-1, 1]. Times t are spread evenly over a batch, with a common random
    shift.

    Args:
      datasets: names of images, or datasets of one shape; each task draws one.
      channels: of the levels of the U-net, the finest first; each halves the image, so
        its size must be a multiple of `2 ** (len(channels) - 1)`.
      groups: of group normalization; divides all channels.
      image_size, grey: of the images.
      batch_size: examples per inner step.
      activation, initializer, init_scale: see `Choices`.
      name: for reports.

    As a meta-loss it is `log_scaled` by 1, the variance of the noise.

    Raises:
      ValueError: images or channels that cannot be divided so.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("diffusion", channels=(8, 16))

    Source: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models" (2020); the
    cosine schedule of Nichol and Dhariwal (2021), in continuous time.
    """
    widths = tuple(channels)
    factor = 2 ** (len(widths) - 1)
    if image_size % factor:
        raise ValueError(
            f"images of {image_size} cannot be halved {len(widths) - 1} times: choose "
            f"an image_size that is a multiple of {factor}"
        )
    if any(width % groups for width in widths):
        raise ValueError(
            f"{groups} groups do not divide the channels {widths}: choose others"
        )
    loaded = load_all(datasets, size=image_size, grey=grey)

    def output_loss(output: Denoised, batch):
        del batch
        return jnp.mean((output.predicted - output.noise) ** 2)

    def functions(activation: Activation) -> Functions:
        return linen_functions(_Diffusion(activation, widths, groups))

    return from_functions(
        functions,
        output_loss,
        loaded,
        Choices(activation, initializer, init_scale),
        batch_size=batch_size,
        normalize=log_scaled(1.0),
        name=name or "diffusion-" + "x".join(map(str, widths)),
    )
