"""Runs longer than an optimizer was trained for."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import check_num_steps, checked
from .._base import LearnedOptimizer, require_value
from .._tensors import zeros_like
from .._transformation import transformation
from ._wrapped import with_need, wrapped


class HorizonState(NamedTuple):
    """Sums over the steps since the last update that was made."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: calls
    gradient: Any  # tree like params, float32
    loss: jax.Array  # shape (), float32
    inner: Any


def extend_horizon(
    optimizer: LearnedOptimizer, max_steps: int = 150_000
) -> LearnedOptimizer:
    r"""Runs longer than an optimizer was trained for, by averaging gradients.

    .. math:: k = \lceil n / n_{max} \rceil, \quad
              u_t = u(\bar g, \bar L) \text{ where } k | t, \text{ else } 0

    Every k calls the averages of k gradients and losses make one update of the inner
    optimizer, whose horizon is `n // k`; the calls between return zeros. Runs of up to
    `max_steps` steps are not changed.

    Args:
      optimizer: any learned optimizer with a horizon.
      max_steps: the longest run it was trained for; 150 000 as the released VeLO has.

    Raises:
      ValueError: `bind` without `num_steps`, or with a traced one: it decides what is
        compiled.

    Example:
      >>> import l2o, jax
      >>> optimizer = l2o.extend_horizon(l2o.celo(), max_steps=2000)
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=10_000)

    Source: google/learned_optimization, research/general_lopt/prefab.py (2022).
    """
    arguments = checked(extend_horizon, locals())
    parts = {"optimizer": arguments.pop("optimizer")}

    def bind(theta, *, num_steps=None):
        if num_steps is None or isinstance(num_steps, jax.core.Tracer):
            raise ValueError(
                "extend_horizon needs the length of the training run as a number: "
                "`optimizer.bind(theta, num_steps=...)`; for "
                "`optax.inject_hyperparams` name it in static_args"
            )
        check_num_steps("extend_horizon", num_steps)
        k = math.ceil(int(num_steps) / max_steps)
        tx = optimizer.bind(theta, num_steps=int(num_steps) // max(k, 1))
        if k <= 1:
            return tx

        def init_fn(params):
            zeros = zeros_like(params, jnp.float32)
            loss = jnp.zeros([], jnp.float32)
            return HorizonState(jnp.zeros([], jnp.int32), zeros, loss, tx.init(params))

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            # Traced at every step, the inner update says what is missing.
            given, loss = value is not None, state.loss
            if given:
                loss = loss + require_value(value, "extend_horizon")
            gradient = optax.tree.add(state.gradient, updates)
            count = optax.safe_increment(state.count)

            def make(inner):
                mean = optax.tree.scale(1 / k, gradient)
                new, after = tx.update(
                    mean, inner, params, value=loss / k if given else None, **extra_args
                )
                return optax.tree.cast_like(new, updates), after

            def skip(inner):
                return optax.tree.zeros_like(updates), inner

            due = count % k == 0
            updates, inner = lax.cond(due, make, skip, state.inner)
            # Not a product with zero, which would keep what is not finite.
            gradient, loss = jax.tree.map(
                lambda x: jnp.where(due, 0.0, x), (gradient, loss)
            )
            return updates, HorizonState(count, gradient, loss, inner)

        return transformation(init_fn, update_fn, name="extend_horizon")

    joined = wrapped("extend_horizon", parts, arguments, bind)
    return joined._replace(needs=with_need("num_steps", optimizer.needs))
