"""The kernels: what is computed of a tile, once it is in registers."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._tensors import finite_gradient
from ..rule._accumulators import Accumulators, Axes, Decays, update_moment
from ..rule._features import adafactor_features, feature_sizes, pairs
from ..rule._rule import Rule, held
from ._pallas_tiles import Cut, call, each_tile, loop

# Features of a factored tensor's rows, of its columns, and those that need both.
OF_ROW = ("row", "rsqrt_row")
OF_COL = ("col", "rsqrt_col")
_OF_BOTH = ("fac_g", "fac_m")


def seen_by_kernels(names: tuple[str, ...], axes: Axes) -> tuple[str, ...]:
    """Groups of planes as large as the tensor, in the order of `_planes`."""
    if axes is None:
        return names
    apart = OF_ROW + OF_COL + _OF_BOTH
    return tuple(n for n in names if n not in apart) + _OF_BOTH


def _planes(
    rule: Rule,
    cut: Cut,
    names: tuple[str, ...],
    grad: jax.Array,
    param: jax.Array,
    momentum: Sequence[jax.Array],
    rms: Sequence[jax.Array],
    second: Sequence[jax.Array],
) -> list[jax.Array]:
    """Those of `seen_by_kernels`.

    Args:
      second: per decay the factored `v^-1/2`, or the moment of a vector.
    """
    alone = tuple(name for name in names if not cut.factored or name not in _OF_BOTH)
    planes = adafactor_features(
        alone,
        grad,
        param,
        Accumulators(tuple(momentum), tuple(rms), tuple(second)),
        None,
        rms_eps=rule.rms_eps,
        vector_eps=rule.vector_eps,
    )
    if cut.factored:
        planes += [grad * root for root in second]
        planes += [m * root for m, root in pairs(momentum, second)]
    return planes


def accumulate(
    rule: Rule,
    cut: Cut,
    names: tuple[str, ...],
    decays: Decays,
    views: tuple,
    second: Any,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...], jax.Array]:
    """The new momenta and second moments, and per block the planes' sums of squares.

    Args:
      views: gradient, parameter, momenta and second moments, of `cut.shape`.
      second: roots of second moments from `Cut.sides` if factored, else the moments.
    """
    _, _, momentum, rms = views
    n, moments = len(momentum), len(momentum) + len(rms)
    seconds = second[0].shape[-1] if cut.factored else len(second)
    scalars = jnp.concatenate(
        [jnp.asarray(d, jnp.float32).reshape(-1) for d in (decays.momentum, decays.rms)]
    )
    # Operands of the kernel: the scalars, the gradient, the parameter, the moments.
    aliases = {3 + i: i for i in range(moments)}
    *new, sums = call(
        functools.partial(_accumulate_kernel, rule, cut, names),
        cut,
        (scalars[None, None], views, second),
        moments,
        sum(feature_sizes(names, n, len(rms), seconds)),
        aliases,
    )
    return tuple(new[:n]), tuple(new[n:]), sums


def _accumulate_kernel(rule, cut, names, decays, views, second, *outputs):
    grad_ref, param_ref, momentum_refs, rms_refs = views
    *new_refs, sums_ref = outputs
    n = len(momentum_refs)

    def body(tile, totals):
        grad = finite_gradient(tile.load(grad_ref), rule.grad_bound)
        new = [
            update_moment(tile.load(ref), grad if i < n else grad * grad, decays[0, i])
            for i, ref in enumerate((*momentum_refs, *rms_refs))
        ]
        for ref, value in zip(new_refs, new, strict=True):
            tile.store(ref, value)
        if cut.factored:
            x, y = second
            sides = [tile.side(x, y, k) for k in range(x.shape[-1])]
            seen = [row * column for row, column in sides]
        else:
            seen = [tile.load(ref) for ref in second]
        planes = _planes(
            rule, cut, names, grad, tile.load(param_ref), new[:n], new[n:], seen
        )
        return [t + tile.square(x) for t, x in zip(totals, planes, strict=True)]

    zeros = [jnp.zeros(cut.tile, jnp.float32)] * sums_ref.shape[-1]
    for k, total in enumerate(each_tile(cut, body, zeros)):
        sums_ref[0, k] = jnp.sum(total)


def apply(
    rule: Rule,
    cut: Cut,
    names: tuple[str, ...],
    widths: tuple[int, int],
    scalars: jax.Array,
    views: tuple,
    second: Any,
) -> list[jax.Array]:
    """The updates; or steps that are yet to be normalised, with their sums.

    These are, per block, of their squares, and the number of those not held.

    Args:
      widths: of the hidden layers.
      scalars: of shape (1 or A, 1, n), in the order of `_network`.
      views: as for `accumulate`, the moments new.
      second: as for `accumulate`; if factored, with planes for the hidden layer.
    """
    kernel = functools.partial(_apply_kernel, rule, cut, names, widths)
    return call(kernel, cut, (scalars, views, second), 1, 2 * rule.normalize_step, {})


def _apply_kernel(rule, cut, names, widths, scalars, views, second, *outputs):
    grad_ref, param_ref, momentum_refs, rms_refs = views

    def body(tile, totals):
        added = [0.0] * widths[0]
        if cut.factored:
            x, y = second
            roots = x.shape[-1] - widths[0]
            sides = [tile.side(x, y, k) for k in range(x.shape[-1])]
            seen = [row * column for row, column in sides[:roots]]
            added = [row + column for row, column in sides[roots:]]
        else:
            seen = [tile.load(ref) for ref in second]
        param = tile.load(param_ref)
        grad = finite_gradient(tile.load(grad_ref), rule.grad_bound)
        momentum, rms = (
            tuple(tile.load(ref) for ref in refs) for refs in (momentum_refs, rms_refs)
        )
        planes = _planes(rule, cut, names, grad, param, momentum, rms, seen)
        direction, magnitude = _network(scalars, widths, planes, added)
        step = direction * jnp.exp(magnitude * rule.exp_mult)
        kept = jnp.ones_like(step)
        still = held(rule, grad, Accumulators(momentum, rms))
        if still is not None:
            step, kept = (jnp.where(still, 0.0, x) for x in (step, kept))
        if not rule.normalize_step:
            tile.store(outputs[0], scalars[0, 0] * step - scalars[0, 1] * param)
            return []
        tile.store(outputs[0], step)
        return [totals[0] + tile.square(step), totals[1] + tile.within(kept)]

    zeros = [jnp.zeros(cut.tile, jnp.float32)] * (2 * rule.normalize_step)
    for k, total in enumerate(each_tile(cut, body, zeros)):
        outputs[1][0, k] = jnp.sum(total)


def _network(
    scalars: Any, widths: tuple[int, int], planes: list[jax.Array], added: Sequence[Any]
) -> list[jax.Array]:
    """The network's outputs.

    The first hidden layer takes a plane at a time; each unit of the second goes into
    the outputs at once. So only the first is ever held.

    Args:
      widths: of the hidden layers.
      added: to the first layer.
    """
    first, second = widths
    b0 = 2  # Positions; of the scalars the first are for the update.
    w0 = b0 + first
    b1 = w0 + len(planes) * first
    w1 = b1 + second
    b2 = w1 + first * second
    w2 = b2 + 2

    hidden = [scalars[0, b0 + k] + x for k, x in enumerate(added)]
    for i, plane in enumerate(planes):
        hidden = [
            h + plane * scalars[0, w0 + i * first + k] for k, h in enumerate(hidden)
        ]
    hidden = [jax.nn.relu(h) for h in hidden]

    def through(k, outputs):
        unit = scalars[0, b1 + k]
        for i, h in enumerate(hidden):
            unit = unit + h * scalars[0, w1 + i * second + k]
        unit = jax.nn.relu(unit)
        return [y + unit * scalars[0, w2 + 2 * k + o] for o, y in enumerate(outputs)]

    outputs = [jnp.full(planes[0].shape, scalars[0, b2 + o]) for o in range(2)]
    # Where it was unrolled, a GPU's compiler took two minutes for 32 units.
    return loop(second, through, outputs, unrolled=8)
