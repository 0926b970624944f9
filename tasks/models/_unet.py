"""A small U-net with a time, as diffusion models have."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import Activation, Conv


class UNet(nn.Module):
    """Images (b, h, w, c) and times (b,) in [0, 1] to images of the same shape.

    Every level halves height and width; on the way up it is joined with what was there
    on the way down.

    Source: Ronneberger, Fischer and Brox, "U-Net" (2015), with the residual blocks of
    Ho, Jain and Abbeel, "Denoising diffusion probabilistic models" (2020), without
    attention.

    Attributes:
      channels: of the levels, the finest first.
      groups: of group normalization.
    """

    activation: Activation
    channels: tuple[int, ...] = (16, 32, 64)
    groups: int = 8

    @nn.compact
    def __call__(self, x, time):
        code = nn.Dense(self.channels[-1], name="time")(_frequencies(time))
        code = self.activation(code)
        outputs, left = x.shape[-1], []
        x = Conv(self.channels[0], name="first")(x)
        for i, channels in enumerate(self.channels):
            x = self._block(channels, f"down{i}")(x, code)
            if i + 1 < len(self.channels):
                left.append(x)
                x = Conv(self.channels[i + 1], stride=2, name=f"halve{i}")(x)
        x = self._block(self.channels[-1], "middle")(x, code)
        for i in reversed(range(len(left))):
            # Every pixel twice, along both axes.
            x = jnp.concatenate([x.repeat(2, 1).repeat(2, 2), left[i]], -1)
            x = self._block(self.channels[i], f"up{i}")(x, code)
        x = self.activation(nn.GroupNorm(self.groups, name="norm")(x))
        return Conv(outputs, name="last")(x)

    def _block(self, channels: int, name: str) -> "_Block":
        return _Block(self.activation, channels, self.groups, name=name)


class _Block(nn.Module):
    activation: Activation
    channels: int
    groups: int

    @nn.compact
    def __call__(self, x, code):
        y = self.activation(nn.GroupNorm(self.groups)(x))
        y = Conv(self.channels)(y) + nn.Dense(self.channels)(code)[:, None, None]
        y = Conv(self.channels)(self.activation(nn.GroupNorm(self.groups)(y)))
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, use_bias=False, name="shortcut")(x)
        return x + y


def _frequencies(time: jax.Array, count: int = 16) -> jax.Array:
    """(b, 2 count): sines and cosines from half a period to some hundred."""
    angles = time[:, None] * jnp.pi * jnp.geomspace(1.0, 200.0, count)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
