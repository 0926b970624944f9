"""Running statistics of the gradient, each in one place.

All of them start at zero and none corrects its bias: what the published learned
optimizers were trained with. Source of the factored form: Adafactor (Shazeer & Stern,
2018); of the set: "Practical tradeoffs between memory, compute, and performance in
learned optimizers" (Metz et al., 2022).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._tensors import state_zeros, zeros_like
from ..names import check_known

_TINY = 1e-30  # keeps the factored moments positive at a zero gradient
_FLOOR = 1e-9


# Which of several axes of one size counts as the larger; see `factored_axes`.
Layout = Literal["jax", "jax_native", "torch", "torch_native", "torch_velo"]
Axes = tuple[int, int] | None


class Accumulators(NamedTuple):
    """Momenta, second moments and factored second moments, one entry per decay.

    In a state each entry is a tree like the parameters; a rule for one tensor sees
    the leaves. `row` is the second moment reduced over the tensor's largest axis d0 and
    `col` over the second largest d1, both with the reduced axis kept at size 1, so that
    they broadcast against the tensor. A scalar or vector keeps its full moment in
    `row`, and `col` is a zero of shape (1,), not used: never None, because wrappers
    such as `optax.tree.map_params` expect one array per parameter.
    """

    momentum: tuple[Any, ...] = ()
    rms: tuple[Any, ...] = ()
    row: tuple[Any, ...] = ()
    col: tuple[Any, ...] = ()


class Decays(NamedTuple):
    """The decay of each accumulator."""

    momentum: Any = ()  # numbers, or an array of shape (n,)
    rms: Any = ()
    second: Any = ()


def factored_axes(shape: tuple[int, ...], layout: Layout = "jax") -> Axes:
    """The axes (d1, d0) over which `col` and `row` are reduced, or None below 2-D.

    d0 is the largest axis and d1 the next. Sizes that are equal are decided by

    - "jax": a stable sort, so that (n, n) gives (0, 1);
    - "jax_native": `numpy.argsort` as the published code calls it, whose order of equal
      sizes depends on the processor from four axes on;
    - "torch", "torch_native": the same for the layout that PyTorch keeps, where
      (..., in, out) is (out, in, ...);
    - "torch_velo": PyLO's VeLO, which swaps the two on a tie, but not (0, 1) of four
      axes, in PyTorch's layout.
    """
    if len(shape) < 2:
        return None
    if layout.startswith("torch"):
        order = torch_axes(len(shape))
        shape = tuple(shape[axis] for axis in order)
    else:
        order = tuple(range(len(shape)))
    kind: Any = None if layout.endswith("native") else "stable"
    *_, d1, d0 = (int(axis) for axis in np.argsort(shape, kind=kind))
    if layout == "torch_velo" and shape[d1] == shape[d0]:
        keep = len(shape) == 4 and (d1, d0) == (0, 1)
        d1, d0 = (d1, d0) if keep else (d0, d1)
    return order[d1], order[d0]


def torch_axes(ndim: int) -> tuple[int, ...]:
    """Our axes in the order of PyTorch's: (..., in, out) becomes (out, in, ...)."""
    if ndim < 2:
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def check_layout(layout: Any) -> Layout:
    """Raises `ValueError` for a layout that does not exist."""
    check_known("layout", layout, get_args(Layout))
    return layout


def update_moment(moment: jax.Array, value: jax.Array, decay: Any) -> jax.Array:
    """`d m + (1 - d) value`, where `1 - d` is of the float32 d.

    As published: of d = 0.999 it differs from 0.001 by 5e-5 of its size.
    """
    decay = jnp.asarray(decay, jnp.float32)
    return decay * moment + (1 - decay) * value


def init_accumulators(
    params: Any, decays: Decays, layout: Layout = "jax"
) -> Accumulators:
    """Zeros: momenta and rms as `state_zeros`, rows and columns always float32."""

    def reduced(param, axis):
        axes = factored_axes(param.shape, layout)
        if axes is None and axis == 0:
            return jnp.zeros(1, jnp.float32)
        zeros = zeros_like(param, jnp.float32)
        # Summed rather than of that shape: so the other axes stay sharded.
        return zeros if axes is None else jnp.sum(zeros, axes[axis], keepdims=True)

    n_second = range(len(decays.second))
    return Accumulators(
        tuple(state_zeros(params) for _ in decays.momentum),
        tuple(state_zeros(params) for _ in decays.rms),
        tuple(jax.tree.map(lambda p: reduced(p, 1), params) for _ in n_second),
        tuple(jax.tree.map(lambda p: reduced(p, 0), params) for _ in n_second),
    )


def second_moment(accumulators: Accumulators) -> Any:
    """A tree like the parameters that tells who has had gradients, or None."""
    moments = accumulators.row or accumulators.rms
    return moments[-1] if moments else None


def update_accumulators(
    accumulators: Accumulators, grad: jax.Array, decays: Decays, axes: Axes
) -> Accumulators:
    """The accumulators of one tensor after they have seen `grad`.

    `m' = d m + (1 - d) g`, `rms' = d rms + (1 - d) g^2`, and for the factored moments
    `d v + (1 - d) mean(g^2 + 1e-30)`, the mean over d0 for `row` and d1 for `col`.
    """
    square = grad * grad + _TINY
    rows, cols = accumulators.row, accumulators.col
    if axes is None:
        row_square, cols_new = square, cols
    else:
        row_square = jnp.mean(square, axes[1], keepdims=True)
        col_square = jnp.mean(square, axes[0], keepdims=True)
        cols_new = _each(cols, col_square, decays.second)
    return Accumulators(
        _each(accumulators.momentum, grad, decays.momentum),
        _each(accumulators.rms, grad * grad, decays.rms),
        _each(rows, row_square, decays.second),
        cols_new,
    )


def _each(moments: Sequence, value: jax.Array, decays: Sequence) -> tuple:
    return tuple(
        update_moment(m, value, d) for m, d in zip(moments, decays, strict=True)
    )


def inverse_roots(
    accumulators: Accumulators, axes: Axes, *, fused_row_mean: bool = False
) -> list[list[jax.Array]]:
    """Per decay, factors whose product approximates `v^-1/2`, each broadcasting.

    For a factored moment: `[(row / mean(row))^-1/2, col^-1/2]`, the mean over d1, each
    operand floored at 1e-9. Otherwise `[(v + 1e-9)^-1/2]`.

    `fused_row_mean` takes the mean as the host code of PyLO's fused kernels does: over
    the axis before d1 of the stacked decays and PyTorch's axes. For matrices, and
    kernels with more channels than taps, these are the decays.
    """
    rows, cols = accumulators.row, accumulators.col
    if axes is None:
        return [[_floored_rsqrt(row + _FLOOR)] for row in rows]
    d1, d0 = axes
    if fused_row_mean:
        order = torch_axes(rows[0].ndim)
        t1, t0 = order.index(d1), order.index(d0)
        reduced = t1 - 1 if t1 > t0 else t1
        axis = order[reduced - 1] + 1 if reduced else 0
        fused = jnp.mean(jnp.stack(rows), axis, keepdims=True)
        means = list(jnp.broadcast_to(fused, (len(rows), *fused.shape[1:])))
    else:
        means = [jnp.mean(row, d1, keepdims=True) for row in rows]
    return [
        [_floored_rsqrt(row / (mean + _FLOOR)), _floored_rsqrt(col)]
        for row, col, mean in zip(rows, cols, means, strict=True)
    ]


def _floored_rsqrt(x: jax.Array) -> jax.Array:
    return lax.rsqrt(jnp.maximum(x, _FLOOR))
