"""Gradients that arrive late."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._base import TaskFamily
from ._gradient import with_gradient
from ._strength import Count, check_count, log_integer
from ._wrap import wrap

_SALT = 0xDE1A7  # keeps the delay's draw apart from the family's own


def delayed_gradient(family: TaskFamily, delay: Count) -> TaskFamily:
    r"""Loss and gradient are those of the parameters d updates ago.

    .. math:: \ell_t = L(p_{\max(0,\, t - d)}), \quad
              g_t = \nabla L(p_{\max(0,\, t - d)})

    As if d other workers had sent their updates while the gradient was computed. The
    loss is late wherever it is looked at: on other splits, and in learning curves, too.

    Args:
      family: any family.
      delay: d; of a pair (low, high) every task draws its own: the floor of a
        log-uniform number from [low, high). The model state holds d copies of the
        parameters, high - 1 of them for a pair, and counts the calls of the loss that
        advance it.

    Raises:
      ValueError: a delay that is not a whole number >= 1, or an empty range.

    Example:
      >>> from l2o.tasks import delayed_gradient, quadratic
      >>> delayed_gradient(quadratic(3), (1, 7)).name
      'quadratic3/delayed'

    Source: VeLO (Metz et al., 2022).
    """
    check_count("delay", delay)
    capacity = delay[1] - 1 if isinstance(delay, Sequence) else delay

    def draws(key: jax.Array) -> dict[str, Any]:
        if not isinstance(delay, Sequence):
            return {}
        return {"delay": log_integer(key, delay)}

    def change(task, config):
        updates = config.get("delay", capacity)

        def init(key):
            params, state = task.init(key)
            past = jax.tree.map(lambda p: jnp.repeat(p[None], capacity, 0), params)
            return params, {
                "base": state,
                "past": past,
                "step": jnp.zeros((), jnp.int32),
            }

        def loss(params, model_state, key, batch):
            past, step = model_state["past"], model_state["step"]
            # Slots that are not written yet hold the initial parameters.
            old = jax.tree.map(lambda x: x[(step - updates) % capacity], past)
            (value, (state, aux)), gradient = jax.value_and_grad(
                task.loss, has_aux=True
            )(old, model_state["base"], key, batch)
            past = jax.tree.map(
                lambda x, p: x.at[step % capacity].set(p.astype(x.dtype)), past, params
            )
            state = {"base": state, "past": past, "step": step + 1}
            return with_gradient(value, gradient, params), (state, aux)

        return task._replace(init=init, loss=loss)

    return wrap(family, "delayed", change, draws, _SALT)
