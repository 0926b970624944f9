"""The direction of one optimizer with the norm of another's steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer
from .._transformation import transformation
from ._wrapped import wrapped


class GraftedState(NamedTuple):
    """The states of both optimizers."""

    direction: Any
    magnitude: Any


def grafted(
    direction: LearnedOptimizer,
    magnitude: LearnedOptimizer,
    *,
    per_tensor: bool = False,
) -> LearnedOptimizer:
    r"""Steps in the direction of one optimizer with the norm of another's.

    .. math:: u = \frac{|u_{magnitude}|}{|u_{direction}|} u_{direction}

    Where the direction is zero, so is the step.

    Args:
      direction, magnitude: learned optimizers; theta is `{"direction", "magnitude"}`.
      per_tensor: whether norms are those of each tensor instead of the whole tree, as
        published.

    Example:
      >>> import l2o
      >>> optimizer = l2o.grafted(l2o.small_fc(), l2o.learnable_adam())

    Source: "Disentangling adaptive gradient methods from learning rates" (Agarwal et
    al., 2020).
    """
    arguments = checked(grafted, locals())
    parts = {name: arguments.pop(name) for name in ("direction", "magnitude")}

    def bind(theta, *, num_steps=None):
        along = direction.bind(theta["direction"], num_steps=num_steps)
        size = magnitude.bind(theta["magnitude"], num_steps=num_steps)

        def init_fn(params):
            return GraftedState(along.init(params), size.init(params))

        def update_fn(updates, state, params=None, **extra_args):
            # What is scaled below is rounded once, by `transformation`.
            updates = optax.tree.cast(updates, jnp.float32)
            u, along_state = along.update(updates, state[0], params, **extra_args)
            v, size_state = size.update(updates, state[1], params, **extra_args)
            if per_tensor:
                updates = jax.tree.map(lambda x, y: x * _ratio(y, x), u, v)
            else:
                updates = optax.tree.scale(_ratio(v, u), u)
            return updates, GraftedState(along_state, size_state)

        return transformation(init_fn, update_fn, name="grafted")

    return wrapped("grafted", parts, arguments, bind)


def _ratio(above: Any, below: Any) -> jax.Array:
    above, below = (
        optax.tree.norm(optax.tree.cast(x, jnp.float32), squared=True)
        for x in (above, below)
    )
    # Of a root at zero the derivative is infinite.
    some = (above != 0) & (below != 0)
    above, below = (jnp.sqrt(jnp.where(some, x, 1.0)) for x in (above, below))
    return jnp.where(some, above / below, 0.0)
