"""Models whose tensors have layouts that plain layers do not have."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import Activation, Conv, patches


class Decoder(nn.Module):
    """A causal transformer, tokens (b, t) to logits (b, t, outputs).

    Source: Vaswani et al., "Attention is all you need" (2017); tied embeddings: Press
    and Wolf, "Using the output embedding to improve language models" (2017).

    Attributes:
      stacked: the layers are one scan, so a kernel's first axis counts layers.
      fused: one kernel (width, 3, heads, head) for queries, keys and values.
      tied: the table of embeddings, transposed, is the last layer, too.
    """

    outputs: int
    activation: Activation
    width: int = 16
    heads: int = 2
    layers: int = 2
    widening: int = 4
    stacked: bool = False
    fused: bool = False
    tied: bool = False

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(self.outputs, self.width, name="embed")
        shape = (tokens.shape[1], self.width)
        normal = nn.initializers.normal(0.02)
        x = table(tokens) + self.param("position", normal, shape, jnp.float32)
        options = (self.activation, self.heads, self.widening, self.fused)
        if self.stacked:
            scanned = nn.scan(
                _Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = scanned(*options, name="layers")(x, None)
        else:
            for i in range(self.layers):
                x, _ = _Block(*options, name=f"layer_{i}")(x, None)
        x = nn.LayerNorm()(x)
        return table.attend(x) if self.tied else nn.Dense(self.outputs, name="head")(x)


class _Block(nn.Module):
    """Attention, then two dense layers; called as the body of a scan is."""

    activation: Activation
    heads: int
    widening: int
    fused: bool

    @nn.compact
    def __call__(self, x, _):
        width = x.shape[-1]
        heads = (self.heads, width // self.heads)
        y = nn.LayerNorm()(x)
        if self.fused:
            qkv = nn.DenseGeneral((3, *heads), name="qkv")(y)
            query, key, value = (qkv[..., i, :, :] for i in range(3))
        else:
            query, key, value = (
                nn.DenseGeneral(heads, name=name)(y)
                for name in ("query", "key", "value")
            )
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.dot_product_attention(query, key, value, mask=mask)
        x = x + nn.DenseGeneral(width, axis=(-2, -1), name="out")(y)
        y = nn.Dense(self.widening * width)(nn.LayerNorm()(x))
        return x + nn.Dense(width)(self.activation(y)), None


class DepthwiseNet(nn.Module):
    """Residual blocks of a convolution per channel and two dense layers.

    Source: Liu et al., "A ConvNet for the 2020s" (2022).
    """

    outputs: int
    activation: Activation
    channels: int = 16
    layers: int = 2
    widening: int = 2

    @nn.compact
    def __call__(self, x):
        x = Conv(self.channels, stride=2, name="stem")(x)
        for i in range(self.layers):
            y = nn.LayerNorm()(_Depthwise(name=f"depthwise_{i}")(x))
            y = self.activation(nn.Dense(self.widening * self.channels)(y))
            x = x + nn.Dense(self.channels)(y)
        return nn.Dense(self.outputs, name="head")(nn.LayerNorm()(x.mean((1, 2))))


class _Depthwise(nn.Module):
    """As `nn.Conv` with a group for every channel: a kernel (3, 3, 1, channels)."""

    @nn.compact
    def __call__(self, x):
        channels, k = x.shape[-1], 3
        start = nn.initializers.lecun_normal()
        kernel = self.param("kernel", start, (k, k, 1, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        y = patches(x, k, 1).reshape(*x.shape[:-1], k * k, channels)
        return jnp.sum(y * kernel.reshape(k * k, channels), -2) + bias


class OutInNet(nn.Module):
    """A small conv net whose weights are (outputs, inputs, height, width).

    Named and laid out as in PyTorch and equinox; images are (b, h, w, c).
    """

    outputs: int
    activation: Activation
    channels: tuple[int, ...] = (8, 16)
    hidden: int = 32

    @nn.compact
    def __call__(self, x):
        for i, channels in enumerate(self.channels):
            layer = _OutIn(channels, 3, name=f"conv{i}")
            x = self.activation(layer(patches(x, 3, 2 if i == 0 else 1)))
        x = self.activation(_OutIn(self.hidden, name="linear")(x.mean((1, 2))))
        return _OutIn(self.outputs, name="head")(x)


class _OutIn(nn.Module):
    """Of patches, which have the inputs last, or of vectors."""

    features: int
    kernel: int = 0  # of a convolution

    @nn.compact
    def __call__(self, x):
        square = self.kernel**2 or 1
        window = (self.kernel,) * 2 if self.kernel else ()
        shape = (self.features, x.shape[-1] // square, *window)
        start = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0
        )
        weight = self.param("weight", start, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[:1], jnp.float32)
        rows = jnp.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, self.features)
        return x @ rows + bias


class Experts(nn.Module):
    """An MLP whose middle is the likeliest of several experts.

    The experts' kernels are stacked: `wi` (experts, width, hidden) and `wo`.

    Source: Fedus et al., "Switch transformers" (2021), without its auxiliary loss.
    """

    outputs: int
    activation: Activation
    width: int = 24
    experts: int = 4
    hidden: int = 32

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Dense(self.width)(x.reshape(len(x), -1)))
        gates = nn.softmax(nn.Dense(self.experts, name="router")(x))
        chosen = jax.nn.one_hot(jnp.argmax(gates, -1), self.experts) * gates
        start = nn.initializers.lecun_normal(batch_axis=0)
        shape = (self.experts, self.width, self.hidden)
        into = self.param("wi", start, shape, jnp.float32)
        back = self.param("wo", start, (shape[0], shape[2], shape[1]), jnp.float32)
        y = self.activation(jnp.einsum("bi,eih->beh", x, into))
        y = jnp.einsum("beh,eho,be->bo", y, back, chosen)
        return nn.Dense(self.outputs, name="head")(nn.LayerNorm()(x + y))
