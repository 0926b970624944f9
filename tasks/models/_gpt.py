"""A GPT as one writes it for training: blocks as modules, a named head."""

import flax.linen as nn
import jax.numpy as jnp

from ._layers import Activation


class Block(nn.Module):
    """Causal attention, then a perceptron, each of a normalised input and added to it.

    Called as a body of `nn.scan` is: returns the pair of the result and None.
    """

    activation: Activation
    heads: int
    mlp: int

    @nn.compact
    def __call__(self, x, mask):
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        y = self.activation(nn.Dense(self.mlp, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y), None


class GPT(nn.Module):
    """A decoder of flax's own layers: tokens (b, t) to logits (b, t, outputs).

    Source: Radford et al., "Language models are unsupervised multitask learners"
    (2019).

    Attributes:
      mlp: width of the perceptrons; 0 takes four times `width`.
      stacked: whether the blocks are one module under `nn.scan`. Their parameters have
        a leading axis of `layers` then.
    """

    outputs: int
    activation: Activation
    width: int = 128
    heads: int = 4
    layers: int = 4
    mlp: int = 0
    stacked: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.outputs, self.width, name="token")(tokens)
        normal = nn.initializers.normal(0.02)
        shape = (tokens.shape[1], self.width)
        x = x + self.param("position", normal, shape, jnp.float32)
        mask = nn.make_causal_mask(tokens)
        options = (self.activation, self.heads, self.mlp or 4 * self.width)
        if self.stacked:
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=self.layers,
            )
            x, _ = blocks(*options, name="blocks")(x, mask)
        else:
            for i in range(self.layers):
                x, _ = Block(*options, name=f"block{i}")(x, mask)
        return nn.Dense(self.outputs, name="lm_head")(nn.LayerNorm()(x))
