"""Statistics of whole tensors."""

from collections.abc import Sequence

import jax

from ._backend import chosen_backend
from ._plain_statistics import plain_mean_and_variance


def mean_and_variance(arrays: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Of every array its mean and its mean squared distance from it.

    Args:
      arrays: float32 with elements, of any shapes.

    Returns:
      Two arrays of shape (arrays,).
    """
    if chosen_backend() == "native":
        from ._native_statistics import native_mean_and_variance

        return native_mean_and_variance(arrays)
    return plain_mean_and_variance(*arrays)
