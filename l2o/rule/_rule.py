"""The rule of per-parameter networks on Adafactor features, for one tensor.

What small_fc, ELO, muLO, VeLO, Celo and Celo2 have in common. With g the gradient cut
to a bound (`finite_gradient`), phi its features (`adafactor_features`) after the
accumulators have seen it, and normalise dividing each feature by its root mean square
over the tensor,

    (d, a, ...) = MLP(normalise(phi), constants)
    update = -(scale s(d e^(lambda a)) + weight_decay p)

where s multiplies by the parameters' root mean square, orthogonalises or normalises if
the rule says so. The step of an entry that has had no gradient is zero, see `held`.
This is the definition, in plain JAX, and the oracle of all kernels.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from .._tensors import finite_gradient, is_held, sees_whole_tensors
from ..names import check_known
from ._accumulators import (
    Accumulators,
    Axes,
    Decays,
    Layout,
    factored_axes,
    inverse_roots,
    torch_axes,
    update_accumulators,
)
from ._chunks import cut, map_over, mean_over
from ._features import adafactor_features, inverse_rms
from ._network import apply_mlp
from ._newton_schulz import NewtonSchulz, newton_schulz

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
GRADIENT_BOUND = 1000.0  # VeLO, Celo and Celo2 cut gradients to this size
# A first momentum that is smaller by this than the second moment's root is of old.

Untouched = Literal["held", "pushed"]


class Rule(NamedTuple):
    """What is fixed about a rule when it is compiled; hashable.

    Attributes:
      features: the groups of `FEATURES` that the network sees.
      vector_features: those of tensors of one axis; the first of `features`.
      exp_mult: lambda.
      rms_eps, vector_eps: as in `adafactor_features`.
      norm_eps: added to mean squares when features and steps are normalised.
      grad_bound: gradients are cut to this size, see `finite_gradient`.
      activation: of `ACTIVATIONS`.
      normalize_input, normalize_step: the normalisations.
      normalized_axes: "all", or the "last" two, in PyTorch's layout with "torch".
      param_scale: whether steps are multiplied by `sqrt(mean(p^2) + 1e-9)`.
      param_scale_bound: bound of that, times the root of the tensor's size.
      precondition: whether steps are multiplied by `(rms + 1e-6)^-1/2`.
      aggregate_mag: whether a is replaced by its mean over the tensor.
      orthogonalize: iterations on steps of two axes or more.
      bias_correction: of the accumulators that the features see.
      fused_row_mean: see `inverse_roots`.
      layout: see `factored_axes`.
      holds: whether entries that have had no gradient make no step, see `held`.
    """

    features: tuple[str, ...]
    vector_features: tuple[str, ...]
    exp_mult: float
    rms_eps: float = 1e-6
    vector_eps: float = 0.0
    norm_eps: float = 1e-5
    grad_bound: float | None = None
    activation: str = "relu"
    normalize_input: bool = True
    normalize_step: bool = False
    normalized_axes: Literal["all", "last", "torch"] = "all"
    param_scale: bool = False
    param_scale_bound: float | None = None
    precondition: bool = False
    aggregate_mag: bool = False
    orthogonalize: NewtonSchulz | None = None
    bias_correction: bool = False
    fused_row_mean: bool = False
    layout: Layout = "jax"
    holds: bool = True


class Tensor(NamedTuple):
    """One tensor, float32 and of at least one axis, with its accumulators' leaves."""

    grad: jax.Array
    param: jax.Array
    accumulators: Accumulators


class Shared(NamedTuple):
    """What all tensors of a call have in common.

    Attributes:
      decays: of the accumulators.
      weight_decay: scalar.
      constants: shape (n,), inputs of the network that are equal everywhere, or None.
      count: updates made including this one; needed for bias correction.
    """

    decays: Decays
    weight_decay: Any = 0.0
    constants: jax.Array | None = None
    count: jax.Array | None = None  # type: ignore[assignment]


def update_one(
    rule: Rule, tensor: Tensor, nn: Any, scale: Any, shared: Shared
) -> tuple[jax.Array, Accumulators]:
    """The update of one tensor and its new accumulators; arguments as their classes."""
    grad, param, accumulators = tensor
    grad = finite_gradient(grad, rule.grad_bound)
    axes = factored_axes(grad.shape, rule.layout)
    accumulators = update_accumulators(accumulators, grad, shared.decays, axes)
    seen = accumulators
    if rule.bias_correction:
        seen = _without_bias(accumulators, shared.decays, shared.count)
    roots = None
    if axes is not None:
        # Their means are over whole rows.
        fused = rule.fused_row_mean
        roots = (
            inverse_roots(accumulators, axes, fused_row_mean=fused),
            inverse_roots(seen, axes, fused_row_mean=fused),
        )
    view = _View(grad, param, accumulators, seen, roots)
    step = _step(rule, view, axes, nn, shared.constants)
    step = apply_step_rules(rule, step, param, seen, held(rule, grad, accumulators))
    return with_decay(-(scale * step), param, shared), accumulators


def with_decay(update: jax.Array, param: jax.Array, shared: Shared) -> jax.Array:
    """The update less `weight_decay p`."""
    decay = shared.weight_decay
    if isinstance(decay, float | int) and decay == 0:
        return update
    return update - decay * param


def check_untouched(untouched: str) -> bool:
    """Whether a rule holds what has had no gradient.

    Raises:
      ValueError: neither "held" nor "pushed".
    """
    check_known("untouched", untouched, get_args(Untouched))
    return untouched == "held"


def held(rule: Rule, grad: jax.Array, accumulators: Accumulators) -> jax.Array | None:
    """The entries that have had no gradient, or none for some hundred updates.

    Their first momentum is at most 1e-8 of the root of the last second moment, or, of a
    rule without momenta, their gradient is zero. None if the rule pushes them.

    Args:
      rule: the rule.
      grad: the gradient.
      accumulators: after they have seen it, their biases not corrected.
    """
    if not rule.holds:
        return None
    if not accumulators.momentum:
        return grad == 0
    second = accumulators.rms[-1] if accumulators.rms else 0.0
    return is_held(accumulators.momentum[0], second)


class _View(NamedTuple):
    """What features are made of: along every axis of the tensor's size or one.

    Attributes:
      grad, param: as in `Tensor`.
      accumulators: after they have seen `grad`.
      seen: the same, without bias if the rule says so.
      roots: `inverse_roots` of both if the tensor is factored.
    """

    grad: jax.Array
    param: jax.Array
    accumulators: Accumulators
    seen: Accumulators
    roots: tuple[Any, Any] | None


def _step(
    rule: Rule, view: _View, axes: Axes, nn: Any, constants: jax.Array | None
) -> jax.Array:
    """`d e^(lambda a)`; of a large tensor in two passes over chunks."""
    over = _normalized_axes(rule, view.grad.ndim)
    chunks = None
    if sees_whole_tensors() and not rule.aggregate_mag:
        chunks = cut(view.grad.shape)
        if chunks is not None and over is not None and chunks.axis not in over:
            chunks = None

    def mean_squares(view):
        planes = _planes(rule, view, axes)
        if over is None:
            return jnp.stack([jnp.mean(x * x) for x in planes])
        return [jnp.mean(x * x, over, keepdims=True) for x in planes]

    scales: Any = None
    if rule.normalize_input:
        if chunks is None:
            means = mean_squares(view)
        else:
            means = mean_over(chunks, mean_squares, view)
        scales = jax.tree.map(lambda x: lax.rsqrt(x + rule.norm_eps), means)

    def step(view):
        planes = _planes(rule, view, axes)
        if rule.normalize_input and over is not None:
            planes = [x * scale for x, scale in zip(planes, scales, strict=True)]
        if chunks is not None:
            # Else features would be computed again for every hidden unit.
            planes = list(lax.optimization_barrier(tuple(planes)))
        direction, magnitude, *_ = apply_mlp(
            nn,
            planes,
            scales if over is None else None,
            constants,
            view.grad.shape,
            ACTIVATIONS[rule.activation],
        )
        if rule.aggregate_mag:
            magnitude = jnp.mean(magnitude)
        return direction * jnp.exp(magnitude * rule.exp_mult)

    if chunks is None:
        return step(view)
    start = scales[0].ravel()[0] if rule.normalize_input else 0.0
    return map_over(chunks, step, view, start)


def _planes(rule: Rule, view: _View, axes: Axes) -> list[jax.Array]:
    return adafactor_features(
        rule.vector_features if axes is None else rule.features,
        view.grad,
        view.param,
        view.seen,
        axes,
        rms_eps=rule.rms_eps,
        vector_eps=rule.vector_eps,
        fac_g_from=view.accumulators,
        roots=view.roots,
    )


def apply_step_rules(
    rule: Rule,
    step: jax.Array,
    param: jax.Array,
    seen: Accumulators,
    still: jax.Array | None,
) -> jax.Array:
    """`s(step)`, zero where `still`, from `held`, is true."""
    step = _without(still, step)
    if rule.param_scale:
        scale = param_scale(param)
        if rule.param_scale_bound is not None:
            scale = jnp.minimum(scale, rule.param_scale_bound * param.size**0.5)
        step = step * scale
    if rule.orthogonalize is not None and step.ndim >= 2:
        torch = rule.normalized_axes == "torch"
        order = torch_axes(step.ndim) if torch else tuple(range(step.ndim))
        back = tuple(order.index(axis) for axis in range(step.ndim))
        matrices = newton_schulz(jnp.transpose(step, order), *rule.orthogonalize)
        step = _without(still, jnp.transpose(matrices, back))
    if rule.normalize_step:
        over = _normalized_axes(rule, step.ndim)
        if still is None:
            step = step * inverse_rms(step, rule.norm_eps, over)
        else:
            kept = jnp.sum(~still, over, dtype=jnp.int32, keepdims=True)
            square = jnp.sum(step * step, over, keepdims=True)
            mean = square / jnp.maximum(kept, 1).astype(square.dtype)
            step = step * lax.rsqrt(mean + rule.norm_eps)
    if rule.precondition:
        step = step * lax.rsqrt(seen.rms[-1] + 1e-6)
    return step


def _without(still: jax.Array | None, step: jax.Array) -> jax.Array:
    return step if still is None else jnp.where(still, 0.0, step)


def _normalized_axes(rule: Rule, ndim: int) -> tuple[int, ...] | None:
    """The axes over which features and steps are normalised; None for all."""
    if ndim <= 2 or rule.normalized_axes == "all":
        return None
    torch = rule.normalized_axes == "torch"
    order = torch_axes(ndim) if torch else tuple(range(ndim))
    return order[-2:]


def param_scale(param: jax.Array) -> jax.Array:
    """`sqrt(mean(p^2) + 1e-9)`."""
    return jnp.sqrt(jnp.mean(param * param) + 1e-9)


def _without_bias(accumulators, decays, count):
    def corrected(moments, group):
        return tuple(
            m / (1 - jnp.float32(d) ** count)
            for m, d in zip(moments, group, strict=True)
        )

    momentum, rms, row, col = accumulators
    return Accumulators(
        corrected(momentum, decays.momentum),
        corrected(rms, decays.rms),
        corrected(row, decays.second),
        corrected(col, decays.second),
    )
