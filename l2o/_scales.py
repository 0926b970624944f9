"""How large the steps of a tensor are, relative to parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def scale_limits(params: Any) -> jax.Array:
    """The largest scales of a run that begins at `params`: what its state keeps.

    Those of the beginning, so that what grows does not make its steps grow. A model
    may well begin at zero or near it, and then has to find its scale: up to that of
    outputs like the inputs, for a matrix `1 / sqrt(fan_in)`, for a vector the root mean
    square of these over all matrices, or 1 without any.

    Returns:
      Shape (tensors,).
    """
    tensors = rows_of(params, params)
    if not tensors:  # a state has the same leaves without any
        return jnp.zeros(0, jnp.float32)
    matrices = [p for p in tensors if p.ndim > 1]
    fan_out, sizes = (p.shape[-1] for p in matrices), (p.size for p in matrices)
    whole = sum(fan_out) / sum(sizes) if matrices else 1.0
    squares = [p.shape[-1] / p.size if p.ndim > 1 else whole for p in tensors]
    usual = jnp.asarray(np.sqrt(squares), jnp.float32)
    return jnp.maximum(parameter_scales(tensors)[0], usual)


def step_scales(updates: Any, params: Any, limits: jax.Array | None) -> jax.Array:
    """What the steps of every tensor are multiplied by, or a one for all.

    Args:
      limits: of `scale_limits`.

    Returns:
      Shape (tensors,) or, without limits, (1,).
    """
    if limits is None or not limits.size:
        return jnp.ones(1, jnp.float32)
    return jnp.minimum(parameter_scales(rows_of(updates, params))[0], limits)
