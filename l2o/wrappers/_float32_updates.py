"""Updates in float32 whatever the gradients have."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._base import LearnedOptimizer
from ._wrapped import wrapped


def float32_updates(optimizer: LearnedOptimizer) -> LearnedOptimizer:
    r"""Returns updates in float32 whatever the gradients have.

    .. math:: p_{bf16} \leftarrow \mathrm{round}(p + u)

    instead of `round(p + round(u))`: `optax.apply_updates` then adds in float32 and
    rounds once, as the published JAX optimizers do for low-precision parameters. Goes
    outermost: other wrappers return the type of the gradients.

    Args:
      optimizer: any learned optimizer.

    Example:
      >>> import l2o
      >>> optimizer = l2o.float32_updates(l2o.small_fc())

    Source: google/learned_optimization (2021).
    """

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def widened(grad):
            kind = jnp.result_type(grad)
            return jnp.asarray(grad, jnp.float32) if _is_float(kind) else grad

        def update_fn(updates, state, params=None, **extra_args):
            updates = jax.tree.map(widened, updates)
            return tx.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update_fn)

    return wrapped("float32_updates", {"optimizer": optimizer}, {}, bind)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)
