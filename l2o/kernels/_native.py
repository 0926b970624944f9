"""The native kernels of the per-parameter update, for CPUs."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from .._tensors import gradient_bound
from ..rule._accumulators import Accumulators, Decays, factored_axes
from ..rule._features import FEATURES
from ..rule._rule import Rule, Shared, Tensor, update_one
from ._library import REVERSE, TOGETHER, UPDATE
from ._primitive import make_primitive, mapped, varying_alike

_WIDTHS = (4, 8, 16, 32)
_REVERSE_WIDTHS = (4, 8)
_PLANES = 30  # of all features
_COUNTS = (3, 1, 3)  # momenta, second moments, factored second moments
_WITHOUT_CLIP = tuple(f for f in FEATURES if f not in ("clip_g", "g_norm"))
_ALONE = 32768  # a tensor of so many elements has a call of its own
# Bits of `flags`; see cpp/tensor.h.
_PARAM_SCALE, _NORMALIZE_STEP, _VECTOR_MOMENTS, _CLIPPED, _HOLDS = 1, 2, 4, 8, 16


def supports(rule: Rule, tensor: Tensor, nn: Any) -> bool:
    """Whether the kernels know this rule for a tensor of this shape.

    Args:
      nn: weights with a first axis.
    """
    if rule.features not in (FEATURES, _WITHOUT_CLIP) or not rule.normalize_input:
        return False
    if rule.activation != "relu" or rule.precondition or rule.aggregate_mag:
        return False
    if rule.bias_correction or rule.fused_row_mean:
        return False
    if rule.param_scale and (rule.param_scale_bound is not None or rule.normalize_step):
        return False
    width = nn["b0"].shape[-1]
    if width not in _WIDTHS or len(nn) != 6 or nn["w1"].shape[-2:] != (width, width):
        return False
    if tuple(map(len, tensor.accumulators[:3])) != _COUNTS:
        return False
    shape = tensor.grad.shape
    axes = factored_axes(shape, rule.layout)
    if len(shape) <= 2 or rule.normalized_axes == "all":
        return True
    # What is normalised apart is one tensor of several for the kernels: it must be what
    # is factored, and the parameters' scale is that of all.
    if rule.param_scale:
        return False
    last = {len(shape) - 2, len(shape) - 1}
    return rule.normalized_axes == "last" and set(axes or ()) == last


class _Layout(NamedTuple):
    """What is fixed about a call."""

    rule: Rule
    shapes: tuple[tuple[int, ...], ...]
    width: int


def update(
    rule: Rule, tensors: Sequence[Tensor], nn: Any, scale: jax.Array, shared: Shared
) -> list[tuple[jax.Array, Accumulators]]:
    """As `update_tensors`, for a rule and tensors that `supports` accepts."""
    weights = jax.vmap(lambda x: _packed(rule, x, shared.constants))(nn)
    decay = jnp.asarray(shared.weight_decay, jnp.float32)
    factors = jnp.stack([scale, jnp.broadcast_to(decay, scale.shape)], -1)
    decays = jnp.concatenate(
        [jnp.asarray(d, jnp.float32).reshape(-1) for d in shared.decays]
    )
    # Small tensors share a call, because a call takes time; large ones do not, because
    # all updates of a call are in memory before the first is applied.
    large = [[i] for i, t in enumerate(tensors) if t.grad.size > _ALONE]
    small = [i for i, t in enumerate(tensors) if t.grad.size <= _ALONE]
    shared_calls = [small[k : k + TOGETHER] for k in range(0, len(small), TOGETHER)]
    results: dict[int, Any] = {}
    for members in [*large, *shared_calls]:
        index = np.array(members)
        layout = _Layout(
            rule, tuple(tensors[i].grad.shape for i in members), nn["b0"].shape[-1]
        )
        operands = [
            decays,
            weights if len(weights) == 1 else weights[index],
            factors if len(factors) == 1 else factors[index],
            *(x for i in members for x in _flat(tensors[i])),
        ]
        operands = [jnp.asarray(x, jnp.float32) for x in operands]
        new = _update(layout, *varying_alike(operands))
        answers = iter(new)
        for i in members:
            results[i] = _answer(tensors[i].accumulators, answers)
    return [results[i] for i in range(len(tensors))]


def _flat(tensor: Tensor) -> list[jax.Array]:
    """A tensor as operands; a vector's `col` is not used."""
    momentum, rms, row, col = tensor.accumulators
    return [
        tensor.grad,
        tensor.param,
        *momentum,
        *rms,
        *row,
        *(col if tensor.grad.ndim > 1 else ()),
    ]


def _answer(old: Accumulators, new: Iterator) -> tuple[jax.Array, Accumulators]:
    step = next(new)
    momentum, rms, row = (tuple(next(new) for _ in group) for group in old[:3])
    is_vector = step.ndim < 2
    col = old.col if is_vector else tuple(next(new) for _ in old.col)
    return step, Accumulators(momentum, rms, row, col)


def _packed(rule: Rule, nn: Any, constants: jax.Array | None) -> jax.Array:
    """`w0, b0, w1, b1, w2, b2` in one row; constants are folded into `b0`."""
    w0, b0 = nn["w0"], nn["b0"]
    planes = _planes(rule)
    if constants is not None:
        b0 = b0 + jnp.matmul(
            constants, w0[planes:], precision=jax.lax.Precision.HIGHEST
        )
    parts = [w0[:planes], b0, nn["w1"], nn["b1"], nn["w2"][:, :2], nn["b2"][:2]]
    return jnp.concatenate([x.reshape(-1) for x in parts])


def _planes(rule: Rule) -> int:
    return _PLANES - 2 * (rule.features == _WITHOUT_CLIP)


def _oracle(layout: _Layout, decays, weights, factors, *operands) -> list[jax.Array]:
    """What `_update` computes, in plain JAX."""
    rule, h = layout.rule, layout.width
    sizes = {
        "w0": (_planes(rule), h),
        "b0": (h,),
        "w1": (h, h),
        "b1": (h,),
        "w2": (h, 2),
        "b2": (2,),
    }
    results, rest = [], iter(operands)
    counts = itertools.accumulate(_COUNTS)
    groups = Decays(*jnp.split(decays, list(counts)[:-1]))
    for i, shape in enumerate(layout.shapes):
        row = weights[i % len(weights)]
        nn, start = {}, 0
        for name, size in sizes.items():
            end = start + math.prod(size)
            nn[name], start = row[start:end].reshape(size), end
        grad, param = next(rest), next(rest)
        momentum, rms, second = (tuple(next(rest) for _ in range(n)) for n in _COUNTS)
        col = second if len(shape) < 2 else tuple(next(rest) for _ in second)
        tensor = Tensor(grad, param, Accumulators(momentum, rms, second, col))
        scale, decay = factors[i % len(factors)]
        update, new = update_one(rule, tensor, nn, scale, Shared(groups, decay))
        results += [update, *new.momentum, *new.rms, *new.row]
        results += new.col if len(shape) > 1 else ()
    return results


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _update(layout: _Layout, *operands: jax.Array) -> list[jax.Array]:
    """Updates and new accumulators, tensor by tensor.

    Args:
      layout: what is fixed.
      *operands: decays (7,), packed weights (1 or tensors, n), factors of the step and
        the parameter (1 or tensors, 2); then per tensor `_flat`.
    """
    return _update_call.bind(*operands, layout=layout, batch=0)


def _update_with_kernel(layout, batch, *operands):
    aliases: dict[int, int] = {}
    first = 3
    for updates, shape in enumerate(layout.shapes, 1):
        last = first + _operands(shape)
        for k in range(first + 2, last):
            aliases[k] = updates + len(aliases)
        first = last
    results = _update_like(layout, batch, *map(jax.typeof, operands))
    return _ffi(UPDATE, layout, operands, results, aliases)


def _update_like(layout, batch, *types):
    """Of a tensor the gradient's, and the state's."""
    del batch
    results, first = [], 3
    for shape in layout.shapes:
        last = first + _operands(shape)
        results += [types[first], *types[first + 2 : last]]
        first = last
    return [x.update(weak_type=False) for x in results]


def _ffi(target, layout, operands, results, aliases):
    rule = layout.rule
    flags = _VECTOR_MOMENTS * (rule.vector_features == rule.features)
    flags |= _CLIPPED * (rule.features == FEATURES) | _HOLDS * rule.holds
    flags |= _PARAM_SCALE * rule.param_scale | _NORMALIZE_STEP * rule.normalize_step
    rows = (x.shape[-2] for x in operands[1:3])
    spec = [layout.width, flags, len(layout.shapes), *rows]
    for shape in layout.shapes:
        spec += _axes(shape, rule)
    bound, eps = gradient_bound(rule.grad_bound), (rule.rms_eps, rule.vector_eps)
    settings = [bound, *eps, rule.norm_eps, rule.exp_mult]
    call = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)
    return list(
        call(
            *operands,
            settings=np.array(settings, np.float32),
            spec=np.array(spec, np.int64),
        )
    )


def _operands(shape: tuple[int, ...]) -> int:
    return 2 + sum(_COUNTS) + 3 * (len(shape) > 1)


def _axes(shape: tuple[int, ...], rule: Rule) -> list[int]:
    """How the kernels see a tensor: (A, Na, B, Nb, C), factored over Na and Nb."""
    axes = factored_axes(shape, rule.layout)
    if axes is None:
        return [0, 0, 0, 1, 1, 1, math.prod(shape), 1]
    a, b = sorted(axes)
    sizes = [
        math.prod(shape[:a]),
        shape[a],
        math.prod(shape[a + 1 : b]),
        shape[b],
        math.prod(shape[b + 1 :]),
    ]
    per_block = len(shape) > 2 and rule.normalized_axes != "all"
    # `row` is reduced over the second of the axes.
    return [1, axes[0] == a, per_block, *sizes]


@_update.defjvp
def _update_jvp(layout, primals, tangents):
    tangents = [
        jnp.zeros_like(x) if t.dtype == jax.dtypes.float0 else t
        for x, t in zip(primals, tangents, strict=True)
    ]
    tangents = varying_alike([*primals, *tangents])[len(primals) :]
    out = _tangents.bind(*primals, *tangents, layout=layout, batch=0)
    return _update(layout, *primals), out


def _tangents_of(layout, *operands):
    half = len(operands) // 2
    oracle = functools.partial(_oracle, layout)
    return jax.jvp(oracle, operands[:half], operands[half:])[1]


def _tangents_like(layout, batch, *types):
    return _update_like(layout, batch, *types[: len(types) // 2])


def _tangents_transposed(cotangents, *operands, layout, batch):
    half = len(operands) // 2
    primals = operands[:half]
    results = _update_like(layout, batch, *map(jax.typeof, primals))
    cotangents = [
        jnp.zeros(x.shape, x.dtype) if type(ct) is ad.Zero else ct
        for ct, x in zip(cotangents, results, strict=True)
    ]
    cotangents = varying_alike([*primals, *cotangents])[len(primals) :]
    out = mapped(functools.partial(_reverse, layout), batch)(*primals, *cotangents)
    return [None] * half + out


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _reverse(layout: _Layout, *operands: jax.Array) -> list[jax.Array]:
    """Cotangents of `_update`'s operands, from the operands and its results'."""
    sizes = [_axes(shape, layout.rule) for shape in layout.shapes]
    known = layout.width in _REVERSE_WIDTHS
    if not known or any(trailing > 1 for *_, trailing in sizes):
        return _oracle_reverse(layout, *operands)
    return _reverse_call.bind(*operands, layout=layout, batch=0)


def _reverse_with_kernel(layout, batch, *operands):
    half = 3 + sum(map(_operands, layout.shapes))
    # The kernel takes a tensor's cotangents after its operands.
    mixed = list(operands[:3])
    first, second = 3, half
    for shape in layout.shapes:
        count = _operands(shape)
        mixed += operands[first : first + count]
        mixed += operands[second : second + count - 1]
        first, second = first + count, second + count - 1
    results = _reverse_like(layout, batch, *map(jax.typeof, operands))
    return _ffi(REVERSE, layout, mixed, results, {})


def _reverse_like(layout, batch, *types):
    del batch
    half = 3 + sum(map(_operands, layout.shapes))
    return [x.update(weak_type=False) for x in types[:half]]


def _oracle_reverse(layout, *operands):
    half = 3 + sum(map(_operands, layout.shapes))
    _, pull = jax.vjp(functools.partial(_oracle, layout), *operands[:half])
    return list(pull(list(operands[half:])))


@_reverse.defjvp
def _reverse_jvp(layout, primals, tangents):
    return jax.jvp(functools.partial(_oracle_reverse, layout), primals, tangents)


_update_call = make_primitive(UPDATE, _oracle, _update_like, _update_with_kernel)
_reverse_call = make_primitive(
    REVERSE, _oracle_reverse, _reverse_like, _reverse_with_kernel
)
# The tangents of the results, linear in those of the operands. A primitive, because in
# reverse it is a kernel and forwards it is the oracle's.
_tangents = make_primitive("l2o_update_tangents", _tangents_of, _tangents_like)
ad.primitive_transposes[_tangents] = _tangents_transposed
ad.primitive_jvps[_tangents] = lambda primals, tangents, *, layout, batch: jax.jvp(
    mapped(functools.partial(_tangents_of, layout), batch),
    tuple(primals),
    tuple(map(ad.instantiate_zeros, tangents)),
)
