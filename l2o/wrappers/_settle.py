"""A wrapper that shortens the steps of a tensor whose gradients vanish."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer
from .._tensors import rows_of, state_rows, sums
from .._transformation import transformation
from ..rule._rule import GRADIENT_BOUND
from ._hypergradient import refuse_decay, scaled_rows
from ._wrapped import wrapped


class GradientSizes(NamedTuple):
    """How large the gradients of tensors are and were: 12 bytes per tensor.

    Each of shape (tensors with elements,), float32, or (1,) without any.
    """

    steps: jax.Array  # with a gradient that is not zero
    recent: jax.Array  # mean of the logarithms of sizes that forgets
    usual: jax.Array  # mean of them all


class SettleState(NamedTuple):
    """The wrapped state, and the sizes of gradients."""

    sizes: GradientSizes
    learned: Any


MARGIN = 1.0
"""The default of `settle`."""


def settle(
    learned: LearnedOptimizer,
    *,
    power: float = 2.0,
    margin: float = MARGIN,
    decay: float = 0.9,
) -> LearnedOptimizer:
    r"""Shortens the steps of every tensor as its gradients vanish.

    .. math:: \lambda = \log \mathrm{mean}|g|, \quad
              a \leftarrow \beta a + (1 - \beta) \lambda, \quad
              b \leftarrow b + \frac{\lambda - b}{t}, \quad
              p \leftarrow p + e^{\,s \min(a - b + \delta,\, 0)} u

    What is normalised takes steps of one size however small the gradient is. Once a
    network knows its few examples by heart, the gradient of a cross-entropy falls
    towards zero and keeps its direction: such steps go on, weights and logits
    grow, and with them the loss on everything that is not in the training data. Here b
    is the logarithm of the usual gradient, a geometric mean over the run, which a few
    large ones at its start hardly change. Steps become shorter where the gradient is
    less than `e^-delta` of it. Where gradients fall as a power of t, as they do in most
    training, a - b is a constant above -1; where they fall exponentially, it falls on.

    A gradient of zero changes neither mean. Losses and parameters may be multiplied by
    a constant.

    Args:
      learned: any learned optimizer without weight decay, which would fade too; its
        updates are u. Theta is `{"learned", "power"}`.
      power: initial value of s. At zero nothing changes; at one steps beyond the margin
        are as small as gradients are, as those of gradient descent.
      margin: delta. A third of the usual gradient, `e^-1`, is nothing unusual.
      decay: beta; at first the mean is a plain one.

    Raises:
      ValueError: a wrapped weight decay.

    Example:
      >>> import l2o
      >>> optimizer = l2o.settle(l2o.small_fc())

    Source: this project's.
    """
    arguments = checked(settle, locals())
    arguments.pop("learned")
    refuse_decay("settle", learned)

    def init_more(key):
        del key
        return {"power": jnp.float32(power)}

    def bind(theta, *, num_steps=None):
        tx = learned.bind(theta["learned"], num_steps=num_steps)

        def init_fn(params):
            return SettleState(init_sizes(params), tx.init(params))

        def update_fn(updates, state, params=None, **extra_args):
            # What is scaled below is rounded once, by `transformation`.
            grads = optax.tree.cast(updates, jnp.float32)
            seen = [mean_size(g) for g in rows_of(grads, grads)] or [jnp.zeros([])]
            sizes = follow_sizes(state.sizes, jnp.stack(seen), decay)
            updates, inner = tx.update(grads, state.learned, params, **extra_args)
            updates = scaled_rows(
                updates, jnp.exp(log_share(theta["power"], sizes, margin))
            )
            return updates, SettleState(sizes, inner)

        return transformation(init_fn, update_fn, name="settle")

    joined = wrapped("settle", {"learned": learned}, arguments, bind, init_more)
    return joined._replace(starts={**joined.starts, "power": ("power",)})


def init_sizes(params: Any) -> GradientSizes:
    """Of no gradients yet."""
    zeros = jnp.zeros(state_rows(params), jnp.float32)
    return GradientSizes(zeros, zeros, zeros)


def follow_sizes(sizes: GradientSizes, size: jax.Array, decay: float) -> GradientSizes:
    """The sizes, of `settle`, after gradients have been seen.

    Args:
      sizes: from before.
      size: shape (tensors,), of `mean_size`.
      decay: as for `settle`.
    """
    some = size > 0
    logs = jnp.log(jnp.where(some, size, 1.0))
    steps = sizes.steps + some
    share = jnp.where(some, 1 / jnp.maximum(steps, 1), 0.0)
    fresh = jnp.where(some, jnp.maximum(share, 1 - decay), 0.0)
    recent = sizes.recent + fresh * (logs - sizes.recent)
    usual = sizes.usual + share * (logs - sizes.usual)
    return GradientSizes(steps, recent, usual)


def log_share(power: Any, sizes: GradientSizes, margin: float = MARGIN) -> jax.Array:
    """The logarithm of what is left of steps; shape (tensors,)."""
    return power * jnp.minimum(sizes.recent - sizes.usual + margin, 0.0)


def mean_size(x: jax.Array) -> jax.Array:
    """The mean size of the entries of a gradient; shape ()."""
    (total,) = sums(lambda x: (sizes(x),), x)
    return total / x.size


def sizes(x: jax.Array) -> jax.Array:
    """Of the entries of a gradient."""
    # A sum of sizes, not of squares, neither overflows nor vanishes.
    return jnp.minimum(jnp.abs(x), GRADIENT_BOUND)
