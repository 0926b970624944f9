"""How tables of embeddings move, of whose rows a batch uses some."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._scales import root_mean_square


def table_limits(
    limits: jax.Array, params: Sequence[jax.Array], widths: Sequence[int]
) -> jax.Array:
    """The limits of `scale_limits`, with those of tables in their places.

    The largest scale of a table is its root mean square at the start, or one over the
    root of its width if that is more.

    Args:
      limits: shape (tensors,).
      params: tensors with elements, at the start.
      widths: of the rows of tables; zero for what is no table.
    """
    if not any(widths):
        return limits
    own = jnp.stack([root_mean_square(p) for p in params])
    usual = np.array([max(n, 1) ** -0.5 for n in widths], np.float32)
    return jnp.where(np.array(widths) > 0, jnp.maximum(own, usual), limits)


def remembering(numbers: Mapping[str, Any], count: jax.Array) -> dict[str, Any]:
    r"""The numbers of the rule for a table: its second moment forgets nothing.

    .. math:: \beta_2 \leftarrow \max(\beta_2, 1 - 1/t)

    So after the first steps it is a mean over the run, as in Adagrad, and a row that is
    seldom seen takes longer steps.

    Args:
      numbers: of `learnable_muon`, with `log_one_minus_b2`.
      count: shape (), updates made before this one: `t - 1`.
    """
    least = -jnp.log1p(count.astype(jnp.float32))
    b2 = jnp.minimum(numbers["log_one_minus_b2"], least)
    return {**numbers, "log_one_minus_b2": b2}
