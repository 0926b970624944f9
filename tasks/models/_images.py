"""Models of images: MLP, convolutions, ResNet, vision transformer, mixer."""

import math
from typing import Any

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp

from ._layers import Activation, Conv, dropout, max_pool, normalization


class MLP(nn.Module):
    """Flattens, then dense layers; normalization before, dropout after activation."""

    outputs: int
    activation: Activation
    hidden: tuple[int, ...] = (32,)
    normalization: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.Dense(width)(x)
            norm = normalization(self.normalization)
            x = self.activation(x if norm is None else norm(x))
            x = dropout(x, self.dropout)
        return nn.Dense(self.outputs)(x)


class ConvNet(nn.Module):
    """3x3 convolutions, activation, then normalization; mean over space; linear.

    Source: google/learned_optimization, tasks/fixed/conv (2021): the first layer has
    stride 2; tasks/parametric: the first `strided` layers.
    """

    outputs: int
    activation: Activation
    channels: tuple[int, ...] = (16, 32)
    strided: int = 1
    normalization: str | None = None

    @nn.compact
    def __call__(self, x):
        for i, channels in enumerate(self.channels):
            x = self.activation(Conv(channels, stride=2 if i < self.strided else 1)(x))
            norm = normalization(self.normalization)
            x = x if norm is None else norm(x)
        return nn.Dense(self.outputs)(x.mean((1, 2)))


class ResNet(nn.Module):
    """Pre-activation bottleneck ResNet with batch norm; its averages are model state.

    Source: He et al., "Identity mappings in deep residual networks" (2016), as in
    google/learned_optimization: projections everywhere, groups of strides 1, 2, 2, 2,
    logits that begin at zero.
    """

    outputs: int
    activation: Activation
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    channels: tuple[int, ...] = (8, 16, 16, 16)
    stem: int = 3
    stem_channels: int = 0  # 0: the first group's
    max_pool: bool = True

    @nn.compact
    def __call__(self, x):
        norm = lambda x: nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        first = self.stem_channels or self.channels[0]
        x = Conv(first, self.stem, stride=2, use_bias=False)(x)
        if self.max_pool:
            x = max_pool(x)
        for group, (blocks, channels) in enumerate(
            zip(self.blocks, self.channels, strict=True)
        ):
            for block in range(blocks):
                stride = 2 if group > 0 and block == 0 else 1
                y = self.activation(norm(x))
                shortcut = x
                if block == 0:
                    shortcut = Conv(channels, 1, stride, use_bias=False)(y)
                y = Conv(channels // 4, 1, use_bias=False)(y)
                y = Conv(channels // 4, 3, stride, use_bias=False)(
                    self.activation(norm(y))
                )
                y = Conv(channels, 1, use_bias=False)(self.activation(norm(y)))
                x = shortcut + y
        x = self.activation(norm(x)).mean((1, 2))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(x)


def haiku_resnet(
    outputs: int,
    activation: Activation,
    *,
    blocks: tuple[int, ...] = (1, 1, 1, 1),
    channels: tuple[int, ...] = (32, 64, 128, 128),
    bottleneck: bool = False,
    stem: int = 3,
    stem_stride: int = 1,
) -> Any:
    """Haiku's own ResNet, whose batch norm keeps its averages in the model state.

    Args:
      outputs: logits.
      activation: is not used: haiku's has relu.
      blocks, channels: of its four groups.
      bottleneck: whether a block is narrow in its middle.
      stem, stem_stride: of the first convolution.

    Source: He et al., "Deep residual learning for image recognition" (2015).
    """
    del activation

    def forward(x):
        first = {
            "kernel_shape": stem, "stride": stem_stride, "output_channels": channels[0]
        }  # fmt: skip
        model = hk.nets.ResNet(
            blocks,
            outputs,
            bottleneck=bottleneck,
            channels_per_group=channels,
            initial_conv_config=first,
        )
        return model(x, is_training=True)

    return hk.transform_with_state(forward)


class ViT(nn.Module):
    """A vision transformer with a class token and learned positions.

    Source: Dosovitskiy et al., "An image is worth 16x16 words" (2020).

    Attributes:
      head: name of the last layer, such as "head"; flax names it if not given.
    """

    outputs: int
    activation: Activation
    patch: int = 4
    width: int = 32
    heads: int = 4
    layers: int = 2
    mlp: int = 64
    dropout: float = 0.0
    head: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(cut_patches(x, self.patch))
        shape = (1, 1, self.width)
        token = self.param("class_token", nn.initializers.zeros, shape, jnp.float32)
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        normal = nn.initializers.normal(0.02)
        x = x + self.param("position", normal, x.shape[1:], jnp.float32)
        x = dropout(x, self.dropout)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(
                self.heads, dropout_rate=self.dropout, deterministic=self.dropout == 0
            )
            x = x + attention(nn.LayerNorm()(x))
            y = self.activation(nn.Dense(self.mlp)(nn.LayerNorm()(x)))
            x = x + dropout(nn.Dense(self.width)(y), self.dropout)
        return nn.Dense(self.outputs, name=self.head)(nn.LayerNorm()(x)[:, 0])


class Mixer(nn.Module):
    """MLPs over tokens, then over channels.

    Source: Tolstikhin et al., "MLP-Mixer" (2021).
    """

    outputs: int
    activation: Activation
    patch: int = 4
    width: int = 32
    layers: int = 2
    token_mlp: int = 32
    channel_mlp: int = 64

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(cut_patches(x, self.patch))
        tokens = x.shape[1]
        for _ in range(self.layers):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(tokens)(self.activation(nn.Dense(self.token_mlp)(y)))
            x = x + y.swapaxes(1, 2)
            y = self.activation(nn.Dense(self.channel_mlp)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x).mean(1))


def cut_patches(x, patch: int):
    """(b, h, w, c) to (b, tokens, patch * patch * c).

    Raises:
      ValueError: images that the patches do not tile.
    """
    b, height, width, channels = x.shape
    if height % patch or width % patch:
        raise ValueError(
            f"patches of {patch} do not tile images of {height}x{width}: choose an "
            "image_size that is a multiple of the patch"
        )
    rows, cols = height // patch, width // patch
    x = x.reshape(b, rows, patch, cols, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * cols, math.prod((patch, patch, channels)))
