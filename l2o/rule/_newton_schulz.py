"""Newton-Schulz iterations, which orthogonalise matrices."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._tensors import square_root

NS_COEFFS = (3.4445, -4.7750, 2.0315)

Precision = Literal["by_platform", "float32", "bfloat16"]


class NewtonSchulz(NamedTuple):
    """The arguments of `newton_schulz` but the matrix."""

    coeffs: tuple[float, float, float]
    iters: int
    eps: float
    precision: Precision = "float32"


def newton_schulz(
    x: jax.Array,
    coeffs: Sequence[float],
    iters: int,
    eps: float,
    precision: Precision = "float32",
) -> jax.Array:
    """Brings the singular values of the last two axes near one.

    `x <- a x + (b A + c A^2) x` with `A = x x^T`, on the side with fewer rows, from
    `x / (|x|_F + eps)`.

    Args:
      precision: of the iterations. "by_platform" is float32 on CPUs and bfloat16 on
        accelerators, which multiply it several times as fast.

    Source: "Muon: An optimizer for hidden layers in neural networks" (Jordan et al.,
    2024).
    """
    iterate = functools.partial(newton_schulz, coeffs=coeffs, iters=iters, eps=eps)
    if precision == "by_platform":
        return lax.platform_dependent(
            x,
            cpu=functools.partial(iterate, precision="float32"),
            default=functools.partial(iterate, precision="bfloat16"),
        )
    sharding = jax.typeof(x).sharding
    if any(sharding.spec):
        # On a mesh of explicit axes JAX asks how each product is to be sharded; XLA may
        # choose.
        iterate = functools.partial(iterate, precision=precision)
        return jax.sharding.auto_axes(iterate, out_sharding=sharding)(x)
    a, b, c = coeffs
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    x = x / (square_root(jnp.sum(x * x, (-2, -1), keepdims=True)) + eps)
    dtype, exact = x.dtype, precision == "float32"
    x = x if exact else x.astype(jnp.bfloat16)

    def matmul(y, z):
        return jnp.matmul(y, z, precision=lax.Precision.HIGHEST if exact else None)

    for _ in range(iters):
        gram = matmul(x, x.mT)
        x = a * x + matmul(b * gram + c * matmul(gram, gram), x)
    x = x.astype(dtype)
    return x.mT if flip else x
