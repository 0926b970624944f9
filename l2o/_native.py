"""The native kernels of the per-parameter update, for CPUs.

`native/kernels.cc` is compiled when the package is built, once per instruction set, if
there is a C++ compiler; the best for the processor is loaded when it is first needed.
"""

import ctypes
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ._accumulators import Accumulators, factored_axes
from ._features import FEATURES

if TYPE_CHECKING:
    from ._per_parameter import Rule, Shared, Tensor

_TARGET = "l2o_update"
_INSTRUCTIONS = ("generic", "avx2", "avx512")  # as `l2o_instructions` numbers them
_WIDTHS = (4, 8, 16, 32)
_PLANES = 30  # of all features
_COUNTS = (3, 1, 3)  # momenta, second moments, factored second moments
_WITHOUT_CLIP = tuple(f for f in FEATURES if f not in ("clip_g", "g_norm"))
_ALONE = 32768  # a tensor of so many elements has a call of its own
# Bits of `flags`; see native/kernels.cc.
_PARAM_SCALE, _NORMALIZE_STEP, _VECTOR_MOMENTS, _CLIPPED = 1, 2, 4, 8


@functools.cache
def unavailable() -> str | None:
    """Why there are no native kernels; None if there are."""
    try:
        _load()
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def instructions() -> str:
    """The instruction set of the loaded kernels: generic, avx2 or avx512."""
    return _load()


@functools.cache
def _load() -> str:
    generic = _path("generic")
    if not generic.exists():
        raise ValueError(
            "they were not built, for want of a C++ compiler when l2o was installed"
        )
    number = ctypes.CDLL(str(generic)).l2o_instructions()
    # A compiler may know fewer instruction sets than the processor.
    built = [name for name in _INSTRUCTIONS[: number + 1] if _path(name).exists()]
    library = ctypes.CDLL(str(_path(built[-1])))
    capsule = jax.ffi.pycapsule(library.l2o_update)
    jax.ffi.register_ffi_target(_TARGET, capsule, platform="cpu")
    return built[-1]


def _path(name: str) -> Path:
    return Path(__file__).with_name("native") / f"{name}.so"


def supports(rule: "Rule", tensor: "Tensor", nn: Any) -> bool:
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
    axes = factored_axes(shape, rule.factoring)
    if len(shape) <= 2 or rule.normalized_axes == "all":
        return True
    # What is normalised apart must be what is factored.
    last = {len(shape) - 2, len(shape) - 1}
    return rule.normalized_axes == "last" and set(axes or ()) == last


def update(
    rule: "Rule",
    tensors: Sequence["Tensor"],
    nn: Any,
    scale: jax.Array,
    shared: "Shared",
    *,
    steps_only: bool,
) -> list[tuple[jax.Array, Accumulators]]:
    """As `update_tensors`, for a rule and tensors that `supports` accepts.

    Args:
      steps_only: the network's steps `d e^(lambda a)` in place of updates.
    """
    weights = jax.vmap(lambda x: _packed(rule, x, shared.constants))(nn)
    decay = jnp.asarray(shared.weight_decay, jnp.float32)
    factors = jnp.stack([scale, jnp.broadcast_to(decay, scale.shape)], -1)
    if steps_only:
        factors = jnp.array([[-1.0, 0.0]])
    decays = jnp.concatenate(
        [jnp.asarray(d, jnp.float32).reshape(-1) for d in shared.decays]
    )
    # Small tensors share a call, because a call takes time; large ones do not, because
    # all updates of a call are in memory before the first is applied.
    large = [[i] for i, t in enumerate(tensors) if t.grad.size > _ALONE]
    small = [i for i, t in enumerate(tensors) if t.grad.size <= _ALONE]
    results: dict[int, Any] = {}
    for members in [*large, *([small] if small else [])]:
        index = np.array(members)
        new = _call(
            rule,
            [tensors[i] for i in members],
            decays,
            weights if len(weights) == 1 else weights[index],
            factors if len(factors) == 1 else factors[index],
            nn["b0"].shape[-1],
            steps_only,
        )
        results.update(zip(members, new, strict=True))
    return [results[i] for i in range(len(tensors))]


def _packed(rule: "Rule", nn: Any, constants: jax.Array | None) -> jax.Array:
    """`w0, b0, w1, b1, w2, b2` in one row; constants are folded into `b0`."""
    w0, b0 = nn["w0"], nn["b0"]
    planes = _PLANES - 2 * (rule.features == _WITHOUT_CLIP)
    if constants is not None:
        b0 = b0 + jnp.matmul(
            constants, w0[planes:], precision=jax.lax.Precision.HIGHEST
        )
    parts = [w0[:planes], b0, nn["w1"], nn["b1"], nn["w2"][:, :2], nn["b2"][:2]]
    return jnp.concatenate([x.reshape(-1) for x in parts])


def _call(
    rule: "Rule",
    tensors: Sequence["Tensor"],
    decays: jax.Array,
    weights: jax.Array,
    factors: jax.Array,
    width: int,
    steps_only: bool,
) -> list[tuple[jax.Array, Accumulators]]:
    flags = _VECTOR_MOMENTS * (rule.vector_features == rule.features)
    flags |= _CLIPPED * (rule.features == FEATURES)
    if not steps_only:
        flags |= _PARAM_SCALE * rule.param_scale | _NORMALIZE_STEP * rule.normalize_step
    spec = [width, flags]
    spec += [len(tensors), len(weights), len(factors)]
    operands = [decays, weights, factors]
    results: list[jax.Array] = []
    aliases = {}
    for tensor in tensors:
        spec += _layout(tensor.grad.shape, rule)
        results.append(tensor.grad)
        operands += [tensor.grad, tensor.param]
        momentum, rms, row, col = tensor.accumulators
        for x in (*momentum, *rms, *row, *(col if tensor.grad.ndim > 1 else ())):
            aliases[len(operands)] = len(results)
            operands.append(x)
            results.append(x)
    bound = math.inf if rule.grad_bound is None else rule.grad_bound
    settings = [bound, rule.rms_eps, rule.vector_eps, rule.norm_eps, rule.exp_mult]
    call = jax.ffi.ffi_call(
        _TARGET,
        [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in results],
        vmap_method="broadcast_all",
        input_output_aliases=aliases,
    )
    new = iter(
        call(
            *operands,
            settings=np.array(settings, np.float32),
            spec=np.array(spec, np.int64),
        )
    )
    answers = []
    for tensor in tensors:
        old = tensor.accumulators
        step = next(new)
        momentum, rms, row = (tuple(next(new) for _ in group) for group in old[:3])
        col = old.col if tensor.grad.ndim < 2 else tuple(next(new) for _ in old.col)
        answers.append((step, Accumulators(momentum, rms, row, col)))
    return answers


def _layout(shape: tuple[int, ...], rule: "Rule") -> list[int]:
    """How the kernels see a tensor: (A, Na, B, Nb, C), factored over Na and Nb."""
    axes = factored_axes(shape, rule.factoring)
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
