"""Orthogonalises matrices: a rational function of them, or Newton-Schulz iterations."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from .._tensors import sees_whole_tensors
from ..names import check_known
from ._inverse import inverse, product
from ._newton_schulz import NS_COEFFS, Precision, newton_schulz

Orthogonal = Literal["by_platform", "rational", "newton_schulz", "newton_schulz_bf16"]

# Zolotarev's function of type (5, 4) for singular values from 0.003 to 1, which takes
# them to between 1 - 0.129 and 1 + 0.129.
LEAST = 0.003
SHIFTS = (3.56363225e-05, 1.27264036e-02)
WEIGHTS = (1.336232e-02, 2.2713414e-01)
SCALE = 0.9123148
_TINY = 1e-30
_NS_ITERS, _NS_EPS = 5, 1e-8
_SMALL = 64  # of matrices with no more rows a batch is faster than one after the other


def check_orthogonal(name: str, orthogonal: str) -> None:
    """Raises `ValueError` for an unknown way; `name` asks."""
    check_known(f"orthogonal of {name}", orthogonal, get_args(Orthogonal))


def orthogonalise(xs: Sequence[jax.Array], way: Orthogonal) -> list[jax.Array]:
    """Brings the singular values of the last two axes near one.

    Matrices of one shape are worked on together, whichever tensors they belong to. So
    compilation takes as long as there are shapes, and where a mesh is known they are
    spread over its devices.

    Args:
      xs: of shape (..., rows, columns), float32.
      way: "rational" is `rational_polar`. "newton_schulz" makes five iterations with
        the coefficients of Muon in float32, and "newton_schulz_bf16" the same in
        bfloat16. "by_platform" is "rational" on CPUs, where it takes a quarter of the
        time, and "newton_schulz_bf16" on accelerators, which are made for products.
    """
    shardings = [jax.typeof(x).sharding for x in xs]
    if any(any(sharding.spec) for sharding in shardings):
        # On a mesh of explicit axes JAX asks how every result is to be sharded; XLA may
        # choose.
        here = functools.partial(orthogonalise, way=way)
        return jax.sharding.auto_axes(here, out_sharding=shardings)(list(xs))
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(xs):
        groups.setdefault(tuple(sorted(x.shape[-2:])), []).append(i)
    found: list[jax.Array] = list(xs)
    for members in groups.values():
        stack, split = _stacked([xs[i] for i in members])
        for i, x in zip(members, split(_group(stack, way)), strict=True):
            found[i] = x
    return found


def _stacked(
    xs: Sequence[jax.Array],
) -> tuple[jax.Array, Callable[[jax.Array], list[jax.Array]]]:
    """All matrices as (count, rows, columns), rows <= columns, and the way back."""
    if len(xs) == 1 and xs[0].ndim == 2:
        flip = xs[0].shape[0] > xs[0].shape[1]
        if flip:
            return xs[0].T, lambda x: [x.T]
        return xs[0], lambda x: [x]
    flips = [x.shape[-2] > x.shape[-1] for x in xs]
    wide = [x.mT if flip else x for x, flip in zip(xs, flips, strict=True)]
    counts = [math.prod(x.shape[:-2]) for x in wide]
    stack = jnp.concatenate([x.reshape(-1, *x.shape[-2:]) for x in wide])

    def split(stack):
        ends, parts = 0, []
        for like, flip, count in zip(wide, flips, counts, strict=True):
            part = stack[ends : ends + count].reshape(like.shape)
            parts.append(part.mT if flip else part)
            ends += count
        return parts

    return stack, split


def _group(x: jax.Array, way: Orthogonal) -> jax.Array:
    """Of matrices of one shape, with rows <= columns."""
    if way == "by_platform":
        return lax.platform_dependent(
            x,
            cpu=functools.partial(_group, way="rational"),
            default=functools.partial(_group, way="newton_schulz_bf16"),
        )
    if way != "rational":
        precision: Precision = "bfloat16" if way == "newton_schulz_bf16" else "float32"
        return newton_schulz(_spread(x), NS_COEFFS, _NS_ITERS, _NS_EPS, precision)
    if x.ndim == 2 or x.shape[-2] <= _SMALL or not sees_whole_tensors():
        return rational_polar(_spread(x))
    return _one_by_one(x)


@jax.custom_jvp
def _one_by_one(x: jax.Array) -> jax.Array:
    """`rational_polar` of each matrix, in the memory of the stack."""
    return lax.fori_loop(0, len(x), lambda i, x: x.at[i].set(rational_polar(x[i])), x)


@_one_by_one.defjvp
def _one_by_one_jvp(primals, tangents):
    return jax.jvp(lambda x: lax.map(rational_polar, x), primals, tangents)


def _spread(x: jax.Array) -> jax.Array:
    """A stack of matrices, spread over the devices of the mesh where one is known."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    ]
    if x.ndim < 3 or not axes:
        return x
    return lax.with_sharding_constraint(x, jax.P(tuple(axes)))


def rational_polar(x: jax.Array) -> jax.Array:
    r"""Brings the singular values of the last two axes near one, by two inverses.

    .. math:: G = x x^\top / s^2, \quad s^2 = |x x^\top|_F, \quad
              x \leftarrow \frac{M}{s} \Bigl(I + \sum_{i=1}^{2} w_i (G + c_i I)^{-1}
              \Bigr) x

    Singular values of 0.003 s or more end within 0.13 of one, and smaller ones at
    359 / s times what they were. Newton-Schulz iterations with the coefficients of Muon
    leave them between 0.68 and 1.2. Of a square matrix this is the work of four
    products; five such iterations are that of fifteen.

    Args:
      x: shape (..., rows, columns), float32, with at most as many rows as columns.

    Source: "Computing fundamental matrix decompositions accurately via the matrix sign
    function in two iterations: the power of Zolotarev's functions" (Nakatsukasa and
    Freund, 2016).
    """
    gram = product(x, x.mT)
    square = jnp.sqrt(jnp.sum(gram * gram, (-2, -1), keepdims=True) + _TINY)
    gram = gram / square
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    factor = eye
    for shift, weight in zip(SHIFTS, WEIGHTS, strict=True):
        factor = factor + weight * inverse(gram + shift * eye)
    return product(factor * (SCALE * lax.rsqrt(square)), x)
