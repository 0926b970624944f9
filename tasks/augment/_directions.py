"""Gradients seen along a few random directions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._base import TaskFamily
from ._gradient import inner, modified, norm
from ._random import normal_like, sum_over_draws
from ._strength import Count, check_count, log_integer
from ._wrap import layers, wrap

_SALT = 0xD12EC  # keeps these draws apart from the family's own


def random_directions(
    family: TaskFamily, count: Count, sign: bool = False
) -> TaskFamily:
    r"""Keeps of the gradient what n random directions see of it.

    .. math:: g' = \sum_{k=1}^{n} u_k \langle u_k, g \rangle
              \quad\text{or}\quad \sum_{k=1}^{n} u_k\, \mathrm{sign} \langle u_k, g
              \rangle, \quad \lVert u_k \rVert_2 = 1

    The u are fresh in every step and uniform on the sphere of all P parameters, so that
    without the sign `E g' = (n / P) g`. The loss is the family's. A step draws n P
    normal numbers.

    Args:
      family: any family.
      count: n; of a pair (low, high) every task draws its own: the floor of a
        log-uniform number from [low, high). That loop's length is known only at run
        time: under `vmap` every task takes as long as the longest, and backpropagation
        through inner training is refused (by JAX); estimators that only run forward,
        and forward-mode derivatives, are not concerned.
      sign: keep only the sign of what a direction sees.

    Raises:
      ValueError: a count that is not a whole number >= 1, or an empty range.

    Example:
      >>> from l2o.tasks import quadratic, random_directions
      >>> random_directions(quadratic(3), 2).name
      'quadratic3/directions'

    Source: VeLO (Metz et al., 2022).
    """
    check_count("count", count)

    def draws(key: jax.Array) -> dict[str, Any]:
        if not isinstance(count, Sequence):
            return {}
        return {"count": log_integer(key, count)}

    def change(task, config):
        def modify(gradient, key):
            def seen(k):
                direction = normal_like(k, gradient)
                size = norm(direction)
                slope = inner(direction, gradient) / size
                slope = jnp.sign(slope) if sign else slope
                return jax.tree.map(lambda u: u * (slope / size), direction)

            n = config.get("count", count)
            return sum_over_draws(seen, key, n, gradient)

        return modified(task, modify, _SALT + layers(config))

    return wrap(family, "directions", change, draws, _SALT)
