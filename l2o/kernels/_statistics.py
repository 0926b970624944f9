"""Statistics of whole tensors."""

from collections.abc import Sequence

import jax

from . import _native
from ._backend import chosen_backend


def mean_and_variance(arrays: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Of every array its mean and its mean squared distance from it.

    Args:
      arrays: float32 with elements, of any shapes.

    Returns:
      Two arrays of shape (arrays,).
    """
    if chosen_backend() == "native":
        return _native.mean_and_variance(arrays)
    return _native.plain_mean_and_variance(*arrays)
