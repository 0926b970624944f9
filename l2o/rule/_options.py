"""The options that describe a per-parameter rule, shared by all that have one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from ._accumulators import Decays, Layout
from ._features import FEATURES, check_features, feature_sizes
from ._newton_schulz import NS_COEFFS, Precision
from ._rule import Untouched


class NetworkOptions(TypedDict, total=False):
    """Options of small_fc, ELO and muLO, which all other per-parameter rules have too.

    Attributes:
      hidden_size, hidden_layers: the per-parameter network.
      exp_mult: factor of the magnitude in `d e^(exp_mult a)`.
      momentum_decays, rms_decays, adafactor_decays: one accumulator each. Groups that
        are multiplied with each other (momenta with rms, momenta with factored
        moments) are paired in order, or one goes with all.
      layout: whose order of axes decides which of equal size are rows, see
        `factored_axes`. Parameters are (..., in, out) in all of them. None is for
        `celo2` alone.
      untouched: what becomes of entries that have had no gradient: "held", they only
        decay, or "pushed" by the network, as published.
    """

    hidden_size: int
    hidden_layers: int
    exp_mult: float
    momentum_decays: Sequence[float]
    rms_decays: Sequence[float]
    adafactor_decays: Sequence[float]
    layout: Layout | None
    untouched: Untouched


class RuleOptions(NetworkOptions, total=False):
    """`NetworkOptions`, and what VeLO, Celo and Celo2 can change of the rule.

    Attributes:
      features: groups of the table in `adafactor_features`.
      param_scale_mult: whether the step is multiplied by the tensor's root mean square.
      precondition_output: whether the step is multiplied by the inverse root of the
        second moment.
    """

    features: Sequence[str]
    param_scale_mult: bool
    precondition_output: bool


class Celo2Options(RuleOptions, total=False):
    """`RuleOptions`, and what Celo2 and its relatives can change of the rule.

    Attributes:
      normalize_input, normalize_output: whether features and steps are divided by their
        root mean square over the last two axes, of (out, in, ...) in PyTorch's layouts.
      aggregate_mag: whether the magnitude a is its mean over the tensor.
      bias_correction: of momenta, rms, rows and columns.
      activation: between the layers.
      orthogonalize: whether the step of a tensor of two axes or more goes through
        Newton-Schulz iterations before it is normalised.
      ns_coeffs, ns_iters, ns_eps: their coefficients, their number and what is added
        to the norm.
      ns_precision: of their products. "by_platform" is float32 on CPUs and bfloat16 on
        accelerators; or "float32" or "bfloat16" everywhere.
    """

    normalize_input: bool
    normalize_output: bool
    aggregate_mag: bool
    bias_correction: bool
    activation: Literal["relu", "tanh"]
    orthogonalize: bool
    ns_coeffs: Sequence[float]
    ns_iters: int
    ns_eps: float
    ns_precision: Precision


NETWORK: Mapping[str, Any] = {
    "hidden_size": 4,
    "hidden_layers": 2,
    "exp_mult": 1e-3,
    "momentum_decays": (0.9, 0.99, 0.999),
    "rms_decays": (0.999,),
    "adafactor_decays": (0.9, 0.99, 0.999),
    "layout": "jax",
    "untouched": "held",
}
RULE: Mapping[str, Any] = {
    **NETWORK,
    "features": FEATURES,
    "param_scale_mult": True,
    "precondition_output": False,
}
CELO2: Mapping[str, Any] = {
    **RULE,
    "hidden_size": 8,
    "exp_mult": 0.0,
    "rms_decays": (0.95,),
    "param_scale_mult": False,
    "normalize_input": True,
    "normalize_output": True,
    "aggregate_mag": False,
    "bias_correction": False,
    "activation": "relu",
    "orthogonalize": False,
    "ns_coeffs": NS_COEFFS,
    "ns_iters": 5,
    "ns_eps": 1e-8,
    "ns_precision": "by_platform",
}

_LAYOUTS = {"stable": "jax", "native": "jax_native"}


def decays_of(options: NetworkOptions) -> Decays:
    """The decays of the accumulators."""
    return Decays(
        tuple(options["momentum_decays"]),
        tuple(options["rms_decays"]),
        tuple(options["adafactor_decays"]),
    )


def layer_sizes(decays: Decays, options: RuleOptions) -> list[int]:
    """Of the per-parameter network of VeLO, Celo and Celo2; it has three outputs."""
    features = check_features(options["features"])
    planes = sum(feature_sizes(features, *map(len, decays)))
    return [planes, *[options["hidden_size"]] * options["hidden_layers"], 3]


def from_factoring(arguments: dict[str, Any], value: Any) -> None:
    """layout"""
    if value is not None:
        arguments["layout"] = _LAYOUTS.get(value, value)


def fused_row_mean(arguments: dict[str, Any], value: Any) -> None:
    """published=['fused_row_mean']"""
    arguments["published"] = ["fused_row_mean"] if value else []
