"""Fixed tasks for evaluation, of kinds that the demo does not meta-train on."""

import math

import flax.linen as nn
import jax.numpy as jnp

from ._adapters import from_linen
from ._base import TaskFamily, clipped
from ._losses import cross_entropy
from .data import digits, patches, python_docs

_VOCABULARY = 128


class _MLP(nn.Module):
    widths: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.out)(x)


class _Conv3x3(nn.Module):
    """A convolution padded by one, as patches times a matrix.

    In a scan on CPUs it is many times faster than `nn.Conv`.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = jnp.concatenate(
            [
                x[:, i : i + height : self.stride, j : j + width : self.stride]
                for i in range(3)
                for j in range(3)
            ],
            axis=-1,
        )
        return patches @ kernel.reshape(-1, self.channels) + bias


class _Conv(nn.Module):
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, channels in enumerate(self.channels):
            x = nn.relu(_Conv3x3(channels, stride=2 if i == 0 else 1)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class _Transformer(nn.Module):
    width: int
    heads: int
    layers: int

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        position = self.param(
            "position", nn.initializers.normal(0.02), (length, self.width)
        )
        x = nn.Embed(_VOCABULARY, self.width)(tokens) + position
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(_VOCABULARY)(nn.LayerNorm()(x))


def deep_mlp() -> TaskFamily:
    """Digits, MLP 64-64-64-64-10 with relu, batch 64."""
    return _classifier(_MLP((64, 64, 64), 10), digits(), 10, "deep_mlp")


def conv() -> TaskFamily:
    """Digits, two 3x3 convolutions of 16 and 32 channels, mean pool, batch 64."""
    return _classifier(_Conv((16, 32)), digits(), 10, "conv")


def autoencoder() -> TaskFamily:
    """Image patches, MLP 64-32-8-32-64 with sigmoid output, squared error, batch 64."""
    return from_linen(
        _MLP((32, 8, 32), 64),
        lambda out, batch: jnp.mean(
            (nn.sigmoid(out) - batch["x"].reshape(out.shape)) ** 2
        ),
        patches(),
        normalize=clipped(1.0),
        name="autoencoder",
    )


def transformer_lm() -> TaskFamily:
    """Bytes of CPython's documentation, one-layer transformer, batch 8 x 32."""
    return from_linen(
        _Transformer(width=32, heads=2, layers=1),
        lambda logits, batch: cross_entropy(logits, batch["y"]),
        python_docs(32),
        batch_size=8,
        normalize=clipped(1.5 * math.log(_VOCABULARY)),
        name="transformer_lm",
    )


def _classifier(module, dataset, classes, name) -> TaskFamily:
    return from_linen(
        module,
        lambda logits, batch: cross_entropy(logits, batch["y"]),
        dataset,
        normalize=clipped(1.5 * math.log(classes)),
        name=name,
    )
