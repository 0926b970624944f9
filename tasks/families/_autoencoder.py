"""Autoencoders and variational autoencoders of images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .._adapters import Functions, from_functions, linen_functions
from .._base import TaskFamily, clipped, log_scaled
from .._choices import Activation, Choices
from ..data import Dataset, load_all
from ..models import MLP

_BIN = 1 / 255  # width of a grey value


def autoencoder(
    datasets: Sequence[str | Dataset] = ("patches",),
    hidden: Sequence[int] = (32, 8, 32),
    *,
    image_size: int = 8,
    grey: bool = True,
    center_data: bool = False,
    constrain_output: bool = True,
    log_loss: bool = False,
    batch_size: int = 64,
    activation: str | Sequence[str] = "relu",
    initializer: str | Sequence[str] | None = None,
    init_scale: tuple[float, float] = (1.0, 1.0),
    name: str = "",
) -> TaskFamily:
    r"""MLPs that reproduce their input.

    .. math:: L = \mathrm{mean}\,(f_w(x) - x)^2, \quad \text{or the mean of}\
              \log(e + 10^{-8})\ \text{with e the error of an image's column}

    Args:
      datasets: names of images, or datasets of one shape; each task draws one.
      hidden: widths of the hidden layers.
      image_size, grey: of the images.
      center_data: pixels in [-1, 1] in place of [0, 1].
      constrain_output: the output goes through tanh (centred) or a sigmoid.
      log_loss: the logarithm of the squared error, averaged over the image's height
        first.
      batch_size: examples per inner step.
      activation, initializer, init_scale: see `Choices`.
      name: for reports.

    As a meta-loss it is `log_scaled` by the pixels' variance; a log loss is what it is,
    clipped to [-12, 1] and mapped to [0, 2.2].

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("autoencoder", hidden=(16, 4, 16))

    Source: VeLO's parametric image MLP autoencoders (Metz et al., 2022).
    """
    loaded = load_all(datasets, size=image_size, grey=grey)
    shape = loaded[0].train["x"].shape[1:]
    pixels = math.prod(shape)
    scale = 2.0 if center_data else 1.0
    variance = float(np.mean([np.var(d.train["x"]) for d in loaded])) * scale**2
    squash = nn.tanh if center_data else nn.sigmoid

    def output_loss(output, batch):
        x = batch["x"] * scale - (1.0 if center_data else 0.0)
        output = squash(output) if constrain_output else output
        error = (output.reshape(x.shape) - x) ** 2
        if log_loss:
            return jnp.mean(jnp.log(error.mean(1) + 1e-8))
        return jnp.mean(error)

    def functions(activation: Activation) -> Functions:
        return linen_functions(MLP(pixels, activation, tuple(hidden)))

    def log_normalize(loss):
        return (12 + jnp.clip(jnp.where(jnp.isnan(loss), 1.0, loss), -12, 1)) * 2.2 / 13

    return from_functions(
        functions,
        output_loss,
        loaded,
        Choices(activation, initializer, init_scale),
        batch_size=batch_size,
        normalize=log_normalize if log_loss else log_scaled(variance),
        name=name or "autoencoder-" + "x".join(map(str, hidden)),
    )


class _Vae(nn.Module):
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    latent: int
    pixels: int
    activation: Activation
    center_data: bool

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        given = 2 * x - 1 if self.center_data else x
        code = MLP(2 * self.latent, self.activation, self.encoder)(given)
        mean, log_std = jnp.split(code, 2, -1)
        key = self.make_rng("dropout")
        sample = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        out = MLP(2 * self.pixels, self.activation, self.decoder)(sample)
        out_mean, out_log_std = jnp.split(jnp.clip(out, -10, 10), 2, -1)
        noise = jax.random.uniform(self.make_rng("dropout"), x.shape) - 0.5
        return Posterior(mean, log_std, out_mean, out_log_std, noise)


class Posterior(NamedTuple):
    """What the loss of a VAE needs; (b, latent) twice, then (b, pixels)."""

    mean: jax.Array
    log_std: jax.Array
    out_mean: jax.Array
    out_log_std: jax.Array
    noise: jax.Array  # spreads a grey value over its bin


def vae(
    datasets: Sequence[str | Dataset] = ("patches",),
    encoder: Sequence[int] = (32,),
    decoder: Sequence[int] = (32,),
    latent: int = 8,
    *,
    image_size: int = 8,
    grey: bool = True,
    center_data: bool = False,
    per_dim_loss: bool = True,
    batch_size: int = 64,
    activation: str | Sequence[str] = "relu",
    initializer: str | Sequence[str] | None = None,
    init_scale: tuple[float, float] = (1.0, 1.0),
    name: str = "",
) -> TaskFamily:
    r"""Variational autoencoders with Gaussian posterior and quantised likelihood.

    .. math:: L = \mathrm{KL}(N(\mu, \sigma^2) \,\|\, N(0, 1))
                  - \sum_i \log\left(N(x_i + u_i; m_i, s_i^2) / 255\right), \quad
              u_i \sim U(\pm 1/510)

    Args:
      datasets: names of images, or datasets of one shape; each task draws one.
      encoder, decoder: widths of the hidden layers.
      latent: dimensions of the code.
      image_size, grey: of the images.
      center_data: the encoder sees pixels in [-1, 1].
      per_dim_loss: the loss is divided by the number of pixels.
      batch_size: examples per inner step.
      activation, initializer, init_scale: see `Choices`.
      name: for reports.

    As a meta-loss, the loss per pixel is clipped to [0, 10].

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("vae", encoder=(16,), decoder=(16,), latent=4)

    Source: Kingma & Welling (2013), as in VeLO's parametric image MLP VAEs (Metz et
    al., 2022).
    """
    loaded = load_all(datasets, size=image_size, grey=grey)
    pixels = math.prod(loaded[0].train["x"].shape[1:])

    def output_loss(code: Posterior, batch: dict[str, Any]):
        x = batch["x"].reshape(len(batch["x"]), -1)
        x = x + code.noise * _BIN
        z = (x - code.out_mean) * jnp.exp(-code.out_log_std)
        log_density = -0.5 * z**2 - code.out_log_std - 0.5 * math.log(2 * math.pi)
        nll = -jnp.sum(log_density + math.log(_BIN), -1)
        variance = jnp.exp(2 * code.log_std)
        kl = jnp.sum(0.5 * (code.mean**2 + variance - 1) - code.log_std, -1)
        loss = jnp.mean(nll + kl)
        metrics = {"kl": jnp.mean(kl), "negative_log_likelihood": jnp.mean(nll)}
        return (loss / pixels if per_dim_loss else loss), metrics

    def functions(activation: Activation) -> Functions:
        return linen_functions(
            _Vae(
                tuple(encoder), tuple(decoder), latent, pixels, activation, center_data
            )
        )

    bounded = clipped(10.0)
    return from_functions(
        functions,
        output_loss,
        loaded,
        Choices(activation, initializer, init_scale),
        batch_size=batch_size,
        normalize=bounded if per_dim_loss else lambda loss: bounded(loss / pixels),
        name=name or f"vae-{'x'.join(map(str, encoder))}-{latent}",
    )
