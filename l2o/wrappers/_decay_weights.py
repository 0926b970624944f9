"""Weight decay around any learned optimizer."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from .._arguments import check_number, checked
from .._base import LearnedOptimizer, require_params
from .._options import takes
from .._transformation import transformation
from ..names import check_known
from ._wrapped import wide, with_need, wrapped


@takes(old={"rate": "decay_per_step"})
def decay_weights(
    optimizer: LearnedOptimizer,
    decay_per_step: Any,
    *,
    kind: Literal["decoupled", "after", "l2"] = "decoupled",
    add_to_loss: bool = True,
) -> LearnedOptimizer:
    r"""Pulls parameters towards zero.

    .. math:: \text{decoupled: } p \leftarrow p + u - w p, \quad
              \text{after: } p \leftarrow (1 - w)(p + u), \quad
              \text{l2: } u = u(g + w p,\; L + w \textstyle\sum p^2)

    Args:
      optimizer: any learned optimizer.
      decay_per_step: w, a number or a tree of numbers like the parameters. It is not
        multiplied by a learning rate.
      kind: "l2" is what google's wrapper does (its gradient is half that of its loss
        term), "after" what PyLO does to AdafacLO and VeLO.
      add_to_loss: for "l2", whether the loss handed on has the penalty.

    Raises:
      ValueError: unknown kind; `update` called without `params`.

    Example:
      >>> import l2o
      >>> optimizer = l2o.decay_weights(l2o.small_fc(), 1e-5)

    Source: google/learned_optimization, optimizers/optimizer_wrappers.py (2022);
    "Decoupled weight decay regularization" (Loshchilov & Hutter, 2019).
    """
    arguments = checked(decay_weights, locals())
    arguments.pop("optimizer")
    check_known("kind", kind, ("decoupled", "after", "l2"))
    for leaf in jax.tree.leaves(decay_per_step, is_leaf=lambda x: x is None):
        check_number("decay_weights", "decay_per_step", leaf)

    def rates(params):
        if jax.tree_util.all_leaves([decay_per_step]):
            return jax.tree.map(lambda _: decay_per_step, params)
        return decay_per_step

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            require_params(params, "decay_weights")
            w = rates(params)
            grads = optax.tree.cast(updates, jnp.float32)
            if kind == "l2":
                if value is not None and add_to_loss:
                    penalties = jax.tree.map(
                        lambda p, x: x * jnp.sum(wide(p) ** 2), params, w
                    )
                    value = value + sum(jax.tree.leaves(penalties))
                grads = jax.tree.map(lambda g, p, x: g + x * wide(p), grads, params, w)
                return tx.update(grads, state, params, value=value, **extra_args)
            updates, state = tx.update(grads, state, params, value=value, **extra_args)
            after = kind == "after"
            updates = jax.tree.map(
                lambda u, p, x: u - x * (wide(p) + after * wide(u)),
                updates,
                params,
                w,
            )
            return updates, state

        return transformation(tx.init, update_fn, name="decay_weights")

    joined = wrapped("decay_weights", {"optimizer": optimizer}, arguments, bind)
    return joined._replace(needs=with_need("params", optimizer.needs))
