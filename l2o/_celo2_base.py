"""`celo2_base`: a normalised per-parameter MLP without horizon."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._accumulators import (
    Accumulators,
    Axes,
    Decays,
    Factoring,
    check_factoring,
    factored_axes,
    init_accumulators,
    torch_axes,
    update_accumulators,
)
from ._base import LearnedOptimizer, recorded, require_params, stable_dtypes
from ._features import (
    FEATURES,
    adafactor_features,
    check_features,
    feature_sizes,
    inverse_rms,
)
from ._network import apply_mlp, init_mlp
from ._parameter_rule import GRADIENT_BOUND, param_scale
from ._tensors import map_tensors

_EPS = 1e-9
_RMS_EPS = 1e-8
_NOT_OF_VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col", "fac_m")
_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
NS_COEFFS = (3.4445, -4.7750, 2.0315)


class Celo2BaseState(NamedTuple):
    """State of the learned rule: 16 bytes per float32 parameter of a matrix."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators


class Celo2Rule(NamedTuple):
    """What is fixed about the learned rule; the arguments of `celo2_base`."""

    decays: Decays
    features: Sequence[str]
    exp_mult: float
    rmsmult: float
    param_scale_mult: bool
    precondition_output: bool
    normalize_input: bool
    normalize_output: bool
    aggregate_mag: bool
    bias_correction: bool
    activation: str
    orthogonalize: bool
    ns_coeffs: Sequence[float]
    ns_iters: int
    ns_eps: float
    factoring: Factoring
    torch_layout: bool  # whether axes are normalised that are PyTorch's last two


def celo2_base(
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    hidden_size: int = 8,
    hidden_layers: int = 2,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    rms_decays: Sequence[float] = (0.95,),
    adafactor_decays: Sequence[float] = (0.9, 0.99, 0.999),
    features: Sequence[str] = FEATURES,
    exp_mult: float = 0.0,
    rmsmult: float = 1.0,
    param_scale_mult: bool = False,
    precondition_output: bool = False,
    normalize_input: bool = True,
    normalize_output: bool = True,
    aggregate_mag: bool = False,
    bias_correction: bool = False,
    activation: Literal["relu", "tanh"] = "relu",
    orthogonalize: bool = False,
    ns_coeffs: Sequence[float] = NS_COEFFS,
    ns_iters: int = 5,
    ns_eps: float = 1e-8,
    factoring: Factoring = "stable",
) -> LearnedOptimizer:
    r"""Per-parameter MLP whose steps have unit root mean square (Celo2-base).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi)), \quad
              p \leftarrow p - \alpha\,(\mathrm{normalise}(d e^{\lambda a}) + w p)

    The features phi are those of `adafactor_features` (a vector has no rows and
    columns), normalised like the step over the last two axes: a convolution's kernel
    (height, width, in, out) for each of its taps. Gradients are cut to +-1000. Neither
    the loss nor the length of the run is needed, but a learning rate is.

    Args:
      learning_rate, weight_decay: alpha, which is the root mean square of a step, and
        w. For a schedule set learning_rate to 1 and chain
        `optax.scale_by_schedule(alpha)` after it.
      hidden_size, hidden_layers: the network; 347 meta-parameters by default.
      momentum_decays, rms_decays, adafactor_decays: fixed; one accumulator each.
      features: groups of the table in `adafactor_features`.
      exp_mult: lambda. At 0, as published, the magnitude a has no effect; with
        aggregate_mag a is its mean over the tensor.
      rmsmult: factor of the normalised step.
      param_scale_mult, precondition_output: whether the step is multiplied by the
        tensor's root mean square before it is normalised, and by the inverse root of
        the second moment afterwards.
      normalize_input, normalize_output: the two normalisations.
      bias_correction: of momenta, rms, rows and columns.
      activation: between the layers.
      orthogonalize, ns_coeffs, ns_iters, ns_eps: Newton-Schulz iterations on the step
        of a tensor of two axes or more, before it is normalised.
      factoring: which of several axes of one size counts as the larger, see
        `factored_axes`.

    Raises:
      ValueError: decays that cannot be paired; unknown features or activation; `update`
        called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.celo2_base(learning_rate=1e-2)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Celo2: Towards learned optimization free lunch" (Moudgil et al., 2026).
    """
    arguments = recorded(locals())
    rule = make_rule(arguments)

    def init_theta(key):
        return {"nn": init_celo2(key, rule, hidden_size, hidden_layers)}

    def bind(theta, *, num_steps=None):
        del num_steps
        return celo2_transformation(
            rule, theta["nn"], learning_rate, weight_decay, name="celo2_base"
        )

    needs = ("params", "learning_rate")
    return LearnedOptimizer(init_theta, bind, "celo2_base", arguments, needs)


def make_rule(arguments: Mapping[str, Any], **more: Any) -> Celo2Rule:
    """The rule of a factory's arguments, checked; `more` goes before them."""
    given = {"torch_layout": False, **arguments, **more}
    check_factoring(given["factoring"])
    if given["activation"] not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"unknown activation {given['activation']!r}; known: {known}")
    if len(given["ns_coeffs"]) != 3:
        raise ValueError(f"ns_coeffs are three numbers, got {given['ns_coeffs']!r}")
    decays = Decays(
        *(given[f"{kind}_decays"] for kind in ("momentum", "rms", "adafactor"))
    )
    given |= {"decays": decays, "features": check_features(given["features"])}
    rule = Celo2Rule(**{field: given[field] for field in Celo2Rule._fields})
    feature_sizes(rule.features, *map(len, decays))
    return rule


def init_celo2(
    key: jax.Array, rule: Celo2Rule, hidden_size: int, hidden_layers: int
) -> dict[str, jax.Array]:
    """The network's weights; those of rows and columns are not used for vectors."""
    planes = sum(feature_sizes(rule.features, *map(len, rule.decays)))
    return init_mlp(key, [planes, *[hidden_size] * hidden_layers, 3])


def celo2_transformation(
    rule: Celo2Rule,
    nn: Any,
    learning_rate: float,
    weight_decay: float,
    *,
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """The learned rule for given weights."""

    def init_fn(params):
        accumulators = init_accumulators(params, rule.decays, rule.factoring)
        return Celo2BaseState(jnp.zeros([], jnp.int32), accumulators)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        require_params(params, name)
        count = optax.safe_increment(state.count)

        def update_tensor(grad, param, *slots):
            grad = jnp.clip(grad, -GRADIENT_BOUND, GRADIENT_BOUND)
            axes = factored_axes(grad.shape, rule.factoring)
            accumulators = update_accumulators(
                Accumulators(*slots), grad, rule.decays, axes
            )
            step = celo2_step(rule, nn, grad, param, accumulators, axes, count)
            return -learning_rate * (step + weight_decay * param), *accumulators

        updates, *accumulators = map_tensors(
            update_tensor, updates, params, *state.accumulators
        )
        return updates, Celo2BaseState(count, Accumulators(*accumulators))

    return stable_dtypes(init_fn, update_fn)


def celo2_step(
    rule: Celo2Rule,
    nn: Any,
    grad: jax.Array,
    param: jax.Array,
    accumulators: Accumulators,
    axes: Axes,
    count: jax.Array,
) -> jax.Array:
    """The normalised step of one tensor, to be subtracted.

    `count` is the number of updates including this one.
    """
    seen = _without_bias(accumulators, rule.decays, count, rule.bias_correction)
    names = rule.features
    if axes is None:
        names = [name for name in names if name not in _NOT_OF_VECTORS]
    planes = adafactor_features(
        names,
        grad,
        param,
        seen,
        axes,
        rms_eps=_RMS_EPS,
        fac_g_from=accumulators,
    )
    over = _normalised_axes(grad.ndim, rule.torch_layout)
    scales = [jnp.ones(())] * len(planes)
    if rule.normalize_input:
        scales = [inverse_rms(plane, _EPS, over) for plane in planes]
        if over is not None:
            planes = [plane * s for plane, s in zip(planes, scales, strict=True)]
            scales = [jnp.ones(())] * len(planes)
    direction, magnitude, _ = apply_mlp(
        nn, planes, scales, None, grad.shape, _ACTIVATIONS[rule.activation]
    )
    if rule.aggregate_mag:
        magnitude = jnp.mean(magnitude)
    step = direction * jnp.exp(magnitude * rule.exp_mult)
    if rule.param_scale_mult:
        step = step * param_scale(param)
    if rule.orthogonalize and step.ndim >= 2:
        order = torch_axes(step.ndim) if rule.torch_layout else tuple(range(step.ndim))
        back = tuple(order.index(axis) for axis in range(step.ndim))
        rows = jnp.transpose(step, order)
        rows = newton_schulz(rows, rule.ns_coeffs, rule.ns_iters, rule.ns_eps)
        step = jnp.transpose(rows, back)
    if rule.normalize_output:
        step = step * inverse_rms(step, _EPS, over)
    step = step * rule.rmsmult
    if rule.precondition_output:
        step = step * lax.rsqrt(seen.rms[-1] + 1e-6)
    return step


def newton_schulz(
    x: jax.Array, coeffs: Sequence[float], iters: int, eps: float
) -> jax.Array:
    """Brings the singular values of the last two axes near one.

    `x <- a x + (b A + c A^2) x` with `A = x x^T`, on the side with fewer rows, from
    `x / (|x|_F + eps)`.

    Source: "Muon: An optimizer for hidden layers in neural networks" (Jordan et al.,
    2024).
    """
    sharding = jax.typeof(x).sharding
    if any(sharding.spec):
        # On a mesh of explicit axes JAX asks how each product is to be sharded; XLA may
        # choose.
        iterate = functools.partial(newton_schulz, coeffs=coeffs, iters=iters, eps=eps)
        return jax.sharding.auto_axes(iterate, out_sharding=sharding)(x)
    a, b, c = coeffs
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    x = x / (jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True)) + eps)

    def matmul(y, z):
        return jnp.matmul(y, z, precision=lax.Precision.HIGHEST)

    for _ in range(iters):
        gram = matmul(x, x.mT)
        x = a * x + matmul(b * gram + c * matmul(gram, gram), x)
    return x.mT if flip else x


def _normalised_axes(ndim: int, torch_layout: bool) -> tuple[int, ...] | None:
    """The last two axes, of PyTorch's layout if so; None for all there are."""
    if ndim <= 2:
        return None
    order = torch_axes(ndim) if torch_layout else tuple(range(ndim))
    return order[-2:]


def _without_bias(accumulators, decays, count, correct):
    if not correct:
        return accumulators

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
