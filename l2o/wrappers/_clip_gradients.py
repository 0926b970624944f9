"""Clipping of gradients before any learned optimizer."""

import jax
import jax.numpy as jnp

from .._arguments import checked
from .._base import LearnedOptimizer
from .._options import takes
from .._transformation import transformation
from ._wrapped import wrapped


@takes(old={"bound": "gradient_bound"})
def clip_gradients(
    optimizer: LearnedOptimizer, gradient_bound: float = 3.0
) -> LearnedOptimizer:
    r"""Cuts every entry of the gradient to a size.

    .. math:: u = u(\min(\max(g, -b), b))

    Args:
      optimizer: any learned optimizer.
      gradient_bound: b; 3 as published.

    Example:
      >>> import l2o
      >>> optimizer = l2o.clip_gradients(l2o.small_fc(), gradient_bound=1.0)

    Source: google/learned_optimization, optimizers/base.py (2021).
    """
    arguments = checked(clip_gradients, locals())
    arguments.pop("optimizer")

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def update_fn(updates, state, params=None, **extra_args):
            updates = jax.tree.map(
                lambda g: jnp.clip(g, -gradient_bound, gradient_bound), updates
            )
            return tx.update(updates, state, params, **extra_args)

        return transformation(tx.init, update_fn, name="clip_gradients")

    return wrapped("clip_gradients", {"optimizer": optimizer}, arguments, bind)
