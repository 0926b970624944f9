"""The per-parameter update as Pallas kernels, for GPUs and TPUs.

As in `cpp/update.h` memory is read in three passes: XLA sums g^2 over rows and
columns; `accumulate` updates momenta and second moments and sums the squares of the
features; `apply` computes the features again and applies the network. A tensor is seen
as (A, rows, columns), factored over the last two; a vector is one row and not factored.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._tensors import finite_gradient
from ..rule._accumulators import (
    Accumulators,
    Axes,
    Decays,
    factored_axes,
    inverse_roots,
    update_accumulators,
)
from ..rule._features import FEATURES, adafactor_features, feature_sizes, inverse_rms
from ..rule._rule import Rule, Shared, Tensor
from ._pallas_kernels import OF_COL, OF_ROW, accumulate, apply, seen_by_kernels
from ._pallas_tiles import BLOCK, Cut, cut_of

_WITHOUT_CLIP = tuple(f for f in FEATURES if f not in ("clip_g", "g_norm"))


def supports(rule: Rule, tensor: Tensor, nn: Any) -> bool:
    """Whether the kernels know this rule for a tensor of this shape.

    Args:
      nn: weights with a first axis; the hidden layers may have any size.
    """
    if rule.features not in (FEATURES, _WITHOUT_CLIP) or not rule.normalize_input:
        return False
    if rule.activation != "relu" or rule.precondition or rule.aggregate_mag:
        return False
    if rule.bias_correction or len(nn) != 6:
        return False
    if rule.param_scale and (rule.param_scale_bound is not None or rule.normalize_step):
        return False
    shape = tensor.grad.shape
    axes = factored_axes(shape, rule.layout)
    if axes is None:
        return True
    a, b = sorted(axes)
    if math.prod(shape[a + 1 : b]) * math.prod(shape[b + 1 :]) != 1:
        return False
    if len(shape) == 2 or rule.normalized_axes == "all":
        return True
    # What is normalised apart must be what is factored.
    return rule.normalized_axes == "last" and a == len(shape) - 2


def update(
    rule: Rule, tensors: Sequence[Tensor], nn: Any, scale: jax.Array, shared: Shared
) -> list[tuple[jax.Array, Accumulators]]:
    """As `update_tensors`, for a rule and tensors that `supports` accepts."""

    def one(i, tensor):
        network, factor = jax.tree.map(lambda x: x[i % len(x)], (nn, scale))
        return _update_one(_platform(), rule, tensor, network, factor, shared)

    return [one(i, tensor) for i, tensor in enumerate(tensors)]


def _platform() -> str:
    """Whose kernels are traced; those for CPUs are interpreted."""
    name = jax.default_backend()
    return name if name in BLOCK else "cpu"


# Compiled, so that tensors of one shape are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _update_one(
    platform: str,
    rule: Rule,
    tensor: Tensor,
    nn: dict[str, jax.Array],
    scale: jax.Array,
    shared: Shared,
) -> tuple[jax.Array, Accumulators]:
    old, shape = tensor.accumulators, tensor.grad.shape
    axes = factored_axes(shape, rule.layout)
    cut = cut_of(platform, rule, shape, axes)
    rows = _rows_of_w0(rule, axes, old)
    names = seen_by_kernels(tuple(rows), axes)

    reduced = update_accumulators(
        Accumulators(row=old.row, col=old.col),
        finite_gradient(tensor.grad, rule.grad_bound),
        Decays(second=shared.decays.second),
        axes,
    )
    second = _second(rule, cut, axes, reduced)
    views = jax.tree.map(cut.view, (tensor.grad, tensor.param, old.momentum, old.rms))
    momentum, rms, sums = accumulate(rule, cut, names, shared.decays, views, second)

    means = _means(cut, sums)
    scales = lax.rsqrt(means + rule.norm_eps)
    w0 = nn["w0"][np.concatenate([rows[name] for name in names])] * scales[..., None]
    b0 = nn["b0"]
    if shared.constants is not None:
        b0 = b0 + _matmul(shared.constants, nn["w0"][sum(map(len, rows.values())) :])
    if axes is not None:
        seen = tensor._replace(accumulators=reduced)
        second = _with_hidden(rule, cut, axes, seen, second, nn["w0"], rows)
    factor, decay = -scale, jnp.asarray(shared.weight_decay, jnp.float32)
    if rule.param_scale:
        square = means[:, names.index("p")]  # The groups before have one plane each.
        factor = factor * jnp.sqrt(jnp.mean(square) + 1e-9)
    scalars = _packed(factor, decay, b0, w0, nn)
    views = *views[:2], momentum, rms
    widths = len(nn["b0"]), len(nn["b1"])
    update, *of_step = apply(rule, cut, names, widths, scalars, views, second)
    if rule.normalize_step:
        total, kept = jnp.split(_totals(cut, *of_step), 2, 1)
        inverse = lax.rsqrt(total / jnp.maximum(kept, 1.0) + rule.norm_eps)
        update = factor * inverse[..., None] * update - decay * views[1]

    update, momentum, rms = jax.tree.map(
        lambda x: cut.original(x, shape), (update, momentum, rms)
    )
    return update, Accumulators(momentum, rms, reduced.row, reduced.col)


def _rows_of_w0(rule: Rule, axes: Axes, old: Accumulators) -> dict[str, np.ndarray]:
    """Per group of features that the tensor has."""
    names = rule.vector_features if axes is None else rule.features
    ends = np.cumsum(
        feature_sizes(names, len(old.momentum), len(old.rms), len(old.row))
    )
    return dict(zip(names, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def _second(rule: Rule, cut: Cut, axes: Axes, moments: Accumulators) -> Any:
    """What kernels see of second moments: factored their roots, else the moments."""
    if axes is None:
        return tuple(row.reshape(cut.shape) for row in moments.row)
    roots = inverse_roots(moments, axes, fused_row_mean=rule.fused_row_mean)
    return cut.sides(*zip(*roots, strict=True))


def _with_hidden(
    rule: Rule,
    cut: Cut,
    axes: Any,
    tensor: Tensor,
    roots: tuple[jax.Array, jax.Array],
    w0: jax.Array,
    rows: dict[str, np.ndarray],
) -> tuple[jax.Array, jax.Array]:
    """The roots, and after them what rows and columns add to the hidden layer."""
    groups = OF_ROW, OF_COL
    x, y = cut.sides(*(adafactor_features(g, *tensor, axes) for g in groups))
    w_x, w_y = (w0[np.concatenate([rows[name] for name in g])] for g in groups)
    if not cut.row_of_rows:
        w_x, w_y = w_y, w_x
    lead = () if cut.apart else (0,)
    x = x * inverse_rms(x, rule.norm_eps, (*lead, 1))
    y = y * inverse_rms(y, rule.norm_eps, (*lead, 2))
    return (
        jnp.concatenate([roots[0], _matmul(x, w_x)], 2),
        jnp.concatenate([roots[1], _matmul(w_y.T, y)], 1),
    )


def _means(cut: Cut, sums: jax.Array) -> jax.Array:
    """Per plane, of the sums of blocks: (A, planes), or (1, planes) over all."""
    a, rows, columns = cut.shape
    return _totals(cut, sums) / (rows * columns * (1 if cut.apart else a))


def _totals(cut: Cut, sums: jax.Array) -> jax.Array:
    """Of sums of blocks: (A, n), or (1, n) over all."""
    totals = jnp.sum(sums[..., 0, :], (1, 2))
    return totals if cut.apart else jnp.sum(totals, 0, keepdims=True)


def _packed(
    factor: jax.Array,
    decay: jax.Array,
    b0: jax.Array,
    w0: jax.Array,
    nn: dict[str, jax.Array],
) -> jax.Array:
    """The scalars of `apply`, in the order of its network; shape (1 or A, 1, n)."""
    # Networks may have more outputs than the direction and the magnitude.
    rest = [nn["b1"], nn["w1"], nn["b2"][:2], nn["w2"][:, :2]]

    def one(w0):
        parts = [factor, decay, b0, w0, *rest]
        return jnp.concatenate([x.reshape(-1) for x in parts])[None]

    return jax.vmap(one)(w0)
