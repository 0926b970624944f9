"""What the per-parameter networks see, and how it is normalised.

A *plane* is one feature of one tensor: an array that broadcasts to the tensor's shape.
Features that are constant along an axis (row and column moments) keep size 1 there and
are never expanded.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ._accumulators import SecondMoment, factored_axes, inverse_root

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


def time_embedding(step: jax.Array) -> jax.Array:
    """`tanh(step / tau - 1)` for eleven time scales tau from 1 to 1e5; shape (11,).

    `step` counts updates made before this one. Source: "Understanding and correcting
    pathologies in the training of learned optimizers" (Metz et al., 2019).
    """
    scales = jnp.asarray(TIME_SCALES, jnp.float32)
    return jnp.tanh(step.astype(jnp.float32) / scales - 1)


def inverse_rms(plane: jax.Array, eps: float) -> jax.Array:
    """`(mean(plane^2) + eps)^-1/2`: the scale that gives a plane unit second moment.

    The mean over a broadcast plane is the mean over the tensor, because every entry is
    repeated equally often. It is handed to the network, which folds it into its first
    weights, instead of being multiplied into the plane.
    """
    return lax.rsqrt(jnp.mean(plane * plane) + eps)


def adafactor_planes(
    grad: jax.Array,
    param: jax.Array,
    momentum: Sequence[jax.Array],
    rms: Sequence[jax.Array],
    second: Sequence[SecondMoment],
) -> list[jax.Array]:
    """The features of `small_fc`, in published order, not normalised.

    g, p, m, rms, m rms^-1/2, rms^-1/2, g v^-1/2, row, col, row^-1/2, col^-1/2,
    m v^-1/2; the middle of each group runs over its decays: 28 planes for 3 momenta,
    1 rms and 3 factored moments. A vector has its full moment in place of row and col.

    Args:
      grad, param: the gradient and the parameters before the update, float32.
      momentum, rms, second: accumulators that have already seen `grad`.

    Source: "Practical tradeoffs between memory, compute, and performance in learned
    optimizers" (Metz et al., 2022).
    """
    shape = grad.shape
    inverse_std = [lax.rsqrt(x + 1e-6) for x in rms]
    rows = [v.row for v in second]
    cols = [v.col if factored_axes(shape) else v.row for v in second]
    # For vectors the published form divides the momentum with another epsilon.
    momentum_eps = 1e-6
    return [
        grad,
        param,
        *momentum,
        *rms,
        *(m * s for m, s in pairs(momentum, inverse_std)),
        *inverse_std,
        *(math.prod(inverse_root(v, shape), start=grad) for v in second),
        *rows,
        *cols,
        *(lax.rsqrt(row + 1e-8) for row in rows),
        *(lax.rsqrt(col + 1e-8) for col in cols),
        *(
            math.prod(inverse_root(v, shape, momentum_eps), start=m)
            for m, v in pairs(momentum, second)
        ),
    ]


def pairs(left: Sequence, right: Sequence) -> list[tuple]:
    """Zips two groups of features; a group of one goes with every member of the other.

    Raises:
      ValueError: the sizes differ and neither is one.
    """
    n = max(len(left), len(right))
    if {len(left), len(right)} - {1, n}:
        raise ValueError(
            f"groups of {len(left)} and {len(right)} accumulators cannot be paired: "
            "give them equally many decays, or one of them a single decay"
        )
    return list(
        zip(
            left if len(left) == n else [*left] * n,
            right if len(right) == n else [*right] * n,
            strict=True,
        )
    )
