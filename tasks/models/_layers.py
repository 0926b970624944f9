"""Layers that several models share."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


class Conv(nn.Module):
    """A convolution as patches times a matrix, padded by half the kernel.

    With one weight set per task, in a scan on CPUs, it is many times faster than
    `nn.Conv`.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        k = self.kernel
        weights = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (k, k, x.shape[-1], self.channels),
            jnp.float32,
        )
        y = patches(x, k, self.stride) @ weights.reshape(-1, self.channels)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return y + bias


def patches(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """(b, h, w, c) to (b, h', w', kernel * kernel * c), padded by `kernel // 2`."""
    height, width = x.shape[1:3]
    before, after = (kernel - 1) // 2, kernel // 2
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    return jnp.concatenate(
        [
            x[:, i : i + height : stride, j : j + width : stride]
            for i in range(kernel)
            for j in range(kernel)
        ],
        axis=-1,
    )


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 windows, stride 2."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    shifted = [
        x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)
    ]
    return jnp.max(jnp.stack(shifted), 0)


def normalization(kind: str | None) -> nn.Module | None:
    """A new layer: "layer", "batch" (decay 0.9) or None.

    Raises:
      ValueError: another kind.
    """
    if kind is None:
        return None
    if kind == "layer":
        return nn.LayerNorm()
    if kind == "batch":
        return nn.BatchNorm(use_running_average=False, momentum=0.9)
    raise ValueError(f"unknown normalization {kind!r}; known: 'layer', 'batch', None")


def dropout(x: jax.Array, rate: float) -> jax.Array:
    """Inside a module; no random stream is read at rate 0."""
    return nn.Dropout(rate, deterministic=False)(x) if rate > 0 else x
