"""How large the steps of a tensor are, relative to parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._recurrent import rows_of


def parameter_scales(params: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Per tensor the scale s, and its own over that of all, as a logarithm.

    Of a matrix s is its root mean square, at least a tenth of that of all parameters
    together; of a vector, which may well begin at zero, it is the latter. That is at
    least 0.001.

    Args:
      params: at least one tensor, all with elements.

    Returns:
      Two arrays of shape (tensors,).
    """
    squares = jnp.stack([jnp.sum(jnp.square(p.astype(jnp.float32))) for p in params])
    sizes = jnp.array([p.size for p in params], jnp.float32)
    everything = jnp.maximum(jnp.sum(squares) / jnp.sum(sizes), 1e-6)
    own = jnp.maximum(squares / sizes, 0.01 * everything)
    matrix = jnp.array([p.ndim > 1 for p in params])
    scales = jnp.sqrt(jnp.where(matrix, own, everything))
    return scales, 0.5 * jnp.log(own / everything)


def step_scales(updates: Any, params: Any, *, relative: bool) -> jax.Array:
    """What the steps of every tensor are multiplied by, or a one for all.

    Returns:
      Shape (tensors,) if `relative` and there is an element, otherwise (1,).
    """
    if relative and (tensors := rows_of(updates, params)):
        return parameter_scales(tensors)[0]
    return jnp.ones(1, jnp.float32)
