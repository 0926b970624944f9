"""How large the steps of a tensor are, relative to parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tensors import rows_of, sums

_LEAST = 1e-3  # of a model that begins at zero
_FLOOR = 0.1  # the least scale of a matrix, over the typical one


def parameter_scales(
    params: Sequence[jax.Array], trained: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Per tensor the scale s, and its own over the typical one, as a logarithm.

    Of a matrix s is its root mean square, at least a tenth of the typical one. Of a
    vector, which may well begin at zero, s is the typical one: the median of the root
    mean squares of matrices, each matrix weighted by its size. So a tensor of another
    magnitude, such as a physical constant, does not change the others' steps. Matrices
    of zeros do not count, nor do tensors that are not trained; without any matrix the
    vectors count. The typical scale is at least 0.001.

    Args:
      params: at least one tensor, all with elements.
      trained: shape (tensors,), which of them have had gradients. None, or none of
        them, for all.

    Returns:
      Two arrays of shape (tensors,).
    """
    own = jnp.stack([root_mean_square(p) for p in params])
    return relative_scales(own, params, trained)


def relative_scales(
    own: jax.Array, params: Sequence[jax.Array], trained: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `parameter_scales`, from the root mean squares and the shapes of parameters.

    Args:
      own: shape (tensors,).
      params: tensors of which only the shapes count.
      trained: as in `parameter_scales`.
    """
    matrix = np.array([p.ndim > 1 for p in params])
    sizes = np.array([p.size for p in params], np.float32)
    typical = jnp.maximum(_typical(own, matrix, sizes, trained), _LEAST)
    floored = jnp.maximum(own, _FLOOR * typical)
    scales = jnp.where(matrix, floored, typical)
    return scales, jnp.log(floored / typical)


def root_mean_square(p: jax.Array) -> jax.Array:
    (total,) = sums(lambda p: (jnp.square(p.astype(jnp.float32)),), p)
    square = total / p.size
    # Of a root at zero the derivative is infinite.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _typical(
    own: jax.Array, matrix: np.ndarray, sizes: np.ndarray, trained: jax.Array | None
) -> jax.Array:
    """The median of these scales, of the tensors that count; shape ()."""
    counts = (own > 0) & jnp.isfinite(own)
    if trained is not None:
        counts &= trained | ~jnp.any(trained)
    weights = jnp.where(counts & matrix, sizes, 0.0)
    weights = jnp.where(jnp.any(weights > 0), weights, jnp.where(counts, sizes, 0.0))
    order = jnp.argsort(own)
    below = jnp.cumsum(weights[order])
    middle = jnp.argmax(below >= 0.5 * below[-1])
    return jnp.where(below[-1] > 0, own[order[middle]], 0.0)


def scale_limits(params: Any) -> jax.Array:
    """The largest scales of a run that begins at `params`: what its state keeps.

    Those of the beginning, so that what grows does not make its steps grow. A model
    may well begin at zero or near it, and then has to find its scale: up to that of
    outputs like the inputs, for a matrix `1 / sqrt(fan_in)`, for a vector the root mean
    square of these over all matrices, or 1 without any.

    Returns:
      Shape (tensors,), or (1,) without any.
    """
    tensors = rows_of(params, params)
    if not tensors:
        return jnp.zeros(1, jnp.float32)  # checkpoints hold no empty arrays
    matrices = [p for p in tensors if p.ndim > 1]
    fan_out, sizes = (p.shape[-1] for p in matrices), (p.size for p in matrices)
    whole = sum(fan_out) / sum(sizes) if matrices else 1.0
    squares = [p.shape[-1] / p.size if p.ndim > 1 else whole for p in tensors]
    usual = jnp.asarray(np.sqrt(squares), jnp.float32)
    return jnp.maximum(parameter_scales(tensors)[0], usual)


def step_scales(
    updates: Any,
    params: Any,
    limits: jax.Array | None,
    moments: Any = None,
) -> jax.Array:
    """What the steps of every tensor are multiplied by, or a one for all.

    Args:
      limits: of `scale_limits`.
      moments: a tree like `updates` of second moments of the gradients before this
        one, or None.

    Returns:
      Shape (tensors,) or, without limits, (1,).
    """
    tensors = rows_of(updates, params)
    if limits is None or not tensors:
        return jnp.ones(1, jnp.float32)
    counted = trained(updates, moments)
    return jnp.minimum(parameter_scales(tensors, counted)[0], limits)


def trained(updates: Any, moments: Any) -> jax.Array | None:
    """Which tensors have had gradients, by their second moments; None for all.

    Returns:
      Shape (tensors,).
    """
    if moments is None:
        return None
    return jnp.stack([has_moved(v) for v in rows_of(updates, moments)])


def has_moved(second: jax.Array) -> jax.Array:
    """Whether a tensor with this second moment has had a gradient; shape ()."""
    # `update_accumulators` adds up to 1e-30 to a moment without a gradient.
    return jnp.max(second) > 2e-30
