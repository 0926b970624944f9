"""The per-parameter network of VeLO and Celo."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._accumulators import Accumulators, Axes
from ._features import adafactor_features, inverse_rms
from ._network import apply_mlp

_EPS = 1e-5
GRADIENT_BOUND = 1000.0  # gradients are cut to this size


class ParameterRule(NamedTuple):
    """What is fixed about the rule.

    Attributes:
      features: the groups of `FEATURES` that the network sees.
      exp_mult, step_mult: lambda_2 and lambda_1 of `parameter_step`.
      param_scale_mult: whether steps grow with the tensor's root mean square.
      clip_param_scale_amount: bound of that root mean square, times the root of the
        tensor's number of elements.
      precondition_output: whether steps are multiplied by `rms^-1/2`.
    """

    features: Sequence[str]
    exp_mult: float
    step_mult: float
    param_scale_mult: bool
    clip_param_scale_amount: float | None
    precondition_output: bool


def parameter_step(
    rule: ParameterRule,
    nn: Any,
    grad: jax.Array,
    param: jax.Array,
    accumulators: Accumulators,
    axes: Axes,
) -> jax.Array:
    """The step of one tensor, to be subtracted: `s lambda_1 d exp(lambda_2 a)`.

    `(d, a, _)` are the network's outputs on the normalised features and s the root
    mean square of the tensor. A tensor that is all zero moves at a scale of 3e-5.
    """
    planes = adafactor_features(rule.features, grad, param, accumulators, axes)
    scales = [inverse_rms(plane, _EPS) for plane in planes]
    direction, magnitude, _ = apply_mlp(nn, planes, scales, None, grad.shape)
    step = direction * jnp.exp(magnitude * rule.exp_mult) * rule.step_mult
    if rule.param_scale_mult:
        scale = param_scale(param)
        if rule.clip_param_scale_amount is not None:
            bound = rule.clip_param_scale_amount * param.size**0.5
            scale = jnp.minimum(scale, bound)
        step = step * scale
    if rule.precondition_output:
        step = step * lax.rsqrt(accumulators.rms[-1] + 1e-6)
    return step


def param_scale(param: jax.Array) -> jax.Array:
    """`sqrt(mean(p^2) + 1e-9)`."""
    return jnp.sqrt(jnp.mean(param * param) + 1e-9)
