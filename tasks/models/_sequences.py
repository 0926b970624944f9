"""Models of sequences: a transformer and 1-d convolutions (flax), RNNs (haiku)."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp

from l2o.names import check_known

from ._layers import Activation, dropout


class Transformer(nn.Module):
    """A decoder: pre-norm, causal, tokens (b, t) to logits (b, t, outputs).

    Source: Vaswani et al., "Attention is all you need" (2017).

    Attributes:
      key_size: of a head; `width / heads` by default. The published language models of
        google/learned_optimization have 32 whatever the width, and no positions.
    """

    outputs: int
    activation: Activation
    width: int = 32
    heads: int = 2
    layers: int = 1
    widening: int = 4
    key_size: int | None = None
    positions: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        x = nn.Embed(self.outputs, self.width)(tokens)
        if self.positions:
            shape = (length, self.width)
            normal = nn.initializers.normal(0.02)
            x = x + self.param("position", normal, shape, jnp.float32)
        mask = nn.make_causal_mask(tokens)
        features = None if self.key_size is None else self.key_size * self.heads
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(
                self.heads,
                qkv_features=features,
                out_features=self.width,
                dropout_rate=self.dropout,
                deterministic=self.dropout == 0,
            )
            x = x + dropout(attention(nn.LayerNorm()(x), mask=mask), self.dropout)
            y = nn.Dense(self.widening * self.width)(nn.LayerNorm()(x))
            y = nn.Dense(self.width)(self.activation(y))
            x = x + dropout(y, self.dropout)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x))


class SignalConv(nn.Module):
    """Convolutions of width 5 and stride 2 over (b, t, c); mean over time; linear."""

    outputs: int
    activation: Activation
    channels: tuple[int, ...] = (16, 32)

    @nn.compact
    def __call__(self, x):
        for channels in self.channels:
            padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
            steps = [padded[:, i : i + x.shape[1] : 2] for i in range(5)]
            x = self.activation(nn.Dense(channels)(jnp.concatenate(steps, -1)))
        return nn.Dense(self.outputs)(x.mean(1))


class GraphConv(nn.Module):
    """Graph convolutions and a linear readout of every node.

    `x` is (b, n, n + f): a node's row of the normalised adjacency, and its features.

    Source: Kipf & Welling, "Semi-supervised classification with graph convolutional
    networks" (2016).
    """

    outputs: int
    activation: Activation
    hidden: tuple[int, ...] = (16, 16)

    @nn.compact
    def __call__(self, x):
        adjacency, nodes = jnp.split(x, [x.shape[1]], -1)
        for width in self.hidden:
            nodes = self.activation(adjacency @ nn.Dense(width)(nodes))
        return nn.Dense(self.outputs)(nodes)


_CORES = ("lstm", "gru", "vanilla", "irnn")


def recurrent(
    outputs: int,
    activation: Activation,
    *,
    core: str = "lstm",
    size: int = 32,
    embedding: int | None = 32,
    every_step: bool = True,
    head: str | None = None,
) -> Any:
    """A recurrent network as a haiku transformed function.

    Args:
      outputs: logits per step.
      activation: of the vanilla core; the others have their own.
      core: "lstm", "gru", "vanilla" or "irnn" (relu, identity at the start).
      size: of its state, whose first value is learned.
      embedding: width of the embedding of tokens (b, t); None takes signals (b, t, c)
        as they are.
      every_step: logits (b, t, outputs); else of the last step only.
      head: name of the last layer, such as "lm_head"; haiku names it if not given.

    Raises:
      ValueError: another core.

    Source: the RNN language models of google/learned_optimization (2021); Le et al.,
    "A simple way to initialize recurrent networks of rectified linear units" (2015).
    """
    check_known("core", core, _CORES)

    def forward(x):
        if embedding is not None:
            x = hk.Embed(outputs, embedding)(x)
        cell = _cell(core, size, activation)
        state = _learned_state(cell, len(x))
        hidden, _ = hk.dynamic_unroll(cell, x, state, time_major=False)
        last = hk.Linear(outputs, name=head)
        return last(hidden if every_step else hidden[:, -1])

    return hk.transform_with_state(forward)


def _cell(core: str, size: int, activation: Activation) -> Any:
    if core == "lstm":
        return hk.LSTM(size)
    if core == "gru":
        return hk.GRU(size)
    return _Vanilla(size, activation if core == "vanilla" else jax.nn.relu, core)


class _Vanilla(hk.RNNCore):
    def __init__(self, size: int, activation: Activation, core: str):
        super().__init__(name=core)
        self.size, self.activation, self.core = size, activation, core

    def __call__(self, x, state):
        start = hk.initializers.Identity() if self.core == "irnn" else None
        into = hk.Linear(self.size, name="input")(x)
        state = self.activation(
            into
            + hk.Linear(self.size, with_bias=False, w_init=start, name="state")(state)
        )
        return state, state

    def initial_state(self, batch_size):
        shape = (self.size,) if batch_size is None else (batch_size, self.size)
        return jnp.zeros(shape)


def _learned_state(cell: Any, batch_size: int) -> Any:
    leaves, structure = jax.tree.flatten(cell.initial_state(None))
    return jax.tree.unflatten(
        structure,
        [
            jnp.tile(
                hk.get_parameter(f"first{i}", x.shape, init=jnp.zeros), (batch_size, 1)
            )
            for i, x in enumerate(leaves)
        ],
    )
