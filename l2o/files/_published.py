"""The classes of google/learned_optimization and amoudgl/celo.

What their constructor arguments mean here is said once, for weight files
(`_foreign.py`) and for recorded traces (`scripts/checks/check_traces.py`); their theta
trees are in `_trees.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._base import LearnedOptimizer
from .._options import translated
from .._registry import find_factory, make
from ..rule._features import FEATURES, check_features

_FACTORED = ("row", "col", "rsqrt_row", "rsqrt_col", "fac_m")
# The groups that a flag, where false, takes away.
_FEATURE_FLAGS = {
    "with_g": ("g",),
    "with_grad_clip_feat": ("clip_g",),
    "with_p": ("p",),
    "with_m": ("m",),
    "with_m_feat": ("m",),
    "with_rms": ("rms",),
    "with_rms_feat": ("rms",),
    "with_rms_norm_g": ("m_norm",),
    "with_rsqrt_rms": ("rsqrt_rms",),
    "with_fac_norm_g": ("fac_g",),
    "with_rms_only_norm_g": ("g_norm",),
    "with_fac_rms": ("row", "col"),
    "with_fac_rsqrt": ("rsqrt_row", "rsqrt_col"),
    "with_fac_mom_mult": ("fac_m",),
    "adafactor_accumulator": _FACTORED,
}
_DECAYS = {
    "initial_momentum_decays": "momentum_decays",
    "initial_rms_decays": "rms_decays",
    "initial_adafactor_decays": "adafactor_decays",
}
_SAME_RECURRENT = (
    "lstm_hidden_size",
    "step_mult",
    "mix_layers",
    "param_scale_mult",
    "rnn_state_decay",
    "constant_loss",
)
_SAME_RULE = ("param_inits", "exp_mult", "precondition_output")
_RULE = {
    "ff_hidden_size": "hidden_size",
    "ff_hidden_layers": "hidden_layers",
    "clip_param_scale_amount": "param_scale_bound",
    **_DECAYS,
    **{name: name for name in (*_SAME_RECURRENT, *_SAME_RULE)},
}
# Flags here, entries of `published` there: `translated` turns one into the other.
_BUGS = {
    name: name for name in ("use_bugged_next_lstm_state", "use_bugged_loss_features")
}
_CELO2_RULE = {
    "ff_hidden_size": "hidden_size",
    "ff_hidden_layers": "hidden_layers",
    "mlp_activation": "activation",
    "step_mult": "learning_rate",
    "rmsmult": "step_mult",
    **_DECAYS,
    **{
        name: name
        for name in (
            "weight_decay",
            "exp_mult",
            "param_scale_mult",
            "precondition_output",
            "normalize_input",
            "normalize_output",
            "aggregate_mag",
            "bias_correction",
            "orthogonalize",
            "ns_coeffs",
            "ns_iters",
            "ns_eps",
        )
    },
}


class Published(NamedTuple):
    """One published class.

    Attributes:
      factory: ours.
      names: its constructor arguments and ours.
      defaults: of its constructor, where ours has another.
      without_effect: constructor arguments that change no number.
    """

    factory: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any] = {}
    without_effect: Sequence[str] = ()


_REPORTS = ("summarize_each_layer", "summarize_all_control", "reparam_decay")
_HYPER_DEFAULTS = {"lstm_hidden_size": 128, "param_inits": 64}
CLASSES = {
    "learned_optimization.LearnableSGD": Published(
        "learnable_sgd", {"initial_lr": "learning_rate"}
    ),
    "learned_optimization.LearnableSGDM": Published(
        "learnable_sgdm",
        {"initial_lr": "learning_rate", "initial_momentum": "momentum"},
    ),
    "learned_optimization.LearnableAdam": Published(
        "learnable_adam",
        {
            "initial_lr": "learning_rate",
            "initial_beta1": "b1",
            "initial_beta2": "b2",
            "initial_epsilon": "eps",
        },
        {"eps_root": 1e-8},
        ("use_summary",),
    ),
    "learned_optimization.MLPLOpt": Published(
        "mlp",
        {k: k for k in ("exp_mult", "step_mult", "hidden_size", "hidden_layers")},
        without_effect=("compute_summary",),
    ),
    "learned_optimization.AdafacMLPLOpt": Published(
        "small_fc",
        {
            **{k: k for k in ("exp_mult", "step_mult", "hidden_size", "hidden_layers")},
            **_DECAYS,
        },
        # The layout of the same weights.
        without_effect=("concat_weights", "make_separate_weights", "split_weights"),
    ),
    "learned_optimization.RNNMLPLOpt": Published(
        "rnn_mlp",
        {
            "step_multiplier": "step_mult",
            "magnitude_rate": "exp_mult",
            "hidden_layer": "hidden_layers",
            "decays": "momentum_decays",
            **{
                name: name
                for name in (
                    "hidden_size",
                    "from_mlp_size",
                    "from_lstm_size",
                    "lstm_to_ff",
                    "lstm_hidden_size",
                )
            },
        },
    ),
    "learned_optimization.NNAdam": Published(
        "nn_adam",
        {
            "initial_learning_rate": "learning_rate",
            "initial_beta1": "b1",
            "initial_beta2": "b2",
            "initial_epsilon": "eps",
            "output_scale": "step_mult",
            "decay_strength": "decay_strength",
            "lstm_hidden_size": "lstm_hidden_size",
        },
    ),
    "learned_optimization.HyperV2": Published(
        "velo",
        {**_RULE, **_BUGS},
        {**_HYPER_DEFAULTS, "use_bugged_loss_features": True, "ff_mult": 100.0},
        _REPORTS,
    ),
    "celo.HyperV2": Published(
        "velo",
        {**_RULE, **_BUGS, "ff_mult": "ff_mult"},
        {**_HYPER_DEFAULTS, "use_bugged_loss_features": True, "ff_mult": 1.0},
        _REPORTS,
    ),
    "celo.Celo": Published(
        "celo",
        {**_RULE, "train_phase": "train_phase"},
        {**_HYPER_DEFAULTS, "train_phase": 1},
        _REPORTS,
    ),
    "celo.CeloAdam": Published(
        "celo_adam",
        {
            "initial_epsilon": "eps",
            "initial_momentum_decays": "b1",
            "initial_rms_decays": "b2",
            "mom_decay": "bias_correction",
            **{name: name for name in _SAME_RECURRENT},
        },
        without_effect=(
            *_REPORTS,
            "ff_hidden_size",
            "ff_hidden_layers",
            "initial_adafactor_decays",
            "clip_param_scale_amount",
            *_SAME_RULE,
            *_FEATURE_FLAGS,
        ),
    ),
    "celo.Celo2Base": Published("celo2_base", _CELO2_RULE),
    "celo.Celo2": Published(
        "celo2",
        {
            **_CELO2_RULE,
            "regex_1d": "regex_1d",
            "mult_1d": "mult_1d",
            "adam_b1": "adam_b1",
            "adam_b2": "adam_b2",
            "adam_epsilon": "adam_eps",
            "adam_bias_correction": "adam_bias_correction",
        },
        {"adam_b2": 0.999},
    ),
}


def published_class(name: str) -> str | None:
    """The key of `CLASSES` for a class's full name, or None.

    A bare name is google's; celo's copies of google's classes are the same but for
    VeLO's.
    """
    *modules, cls = name.split(".")
    if cls == "Celo" and "celo_adam" in modules:
        cls = "CeloAdam"
    for package in ("celo", "learned_optimization"):
        known = f"{package}.{cls}" in CLASSES
        if known and (package in modules or cls != "HyperV2" or package != "celo"):
            return f"{package}.{cls}"
    return None


def from_config(cls: str, config: Mapping[str, Any]) -> LearnedOptimizer:
    """The optimizer of a published class and its constructor arguments.

    Args:
      cls: a key of `CLASSES`.
      config: as published; arguments that are missing have the class's defaults.

    Raises:
      ValueError: an argument or value that has no counterpart here.
    """
    name, arguments = our_arguments(cls, config)
    return make(name, **arguments)


def our_arguments(cls: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The factory of a published class, and its arguments; makes nothing.

    As `from_config`.
    """
    published = CLASSES[cls]
    config = dict(config)
    arguments = dict(published.defaults)
    for name in published.without_effect:
        config.pop(name, None)
    features = set(FEATURES)
    for flag, groups in _FEATURE_FLAGS.items():
        if "with_validation" not in flag and not config.pop(flag, True):
            features -= set(groups)
    if len(features) < len(FEATURES):
        arguments["features"] = list(check_features(tuple(features)))
    validation = config.pop("validation_mode", False)
    if config.pop("with_validation_feature_dim", False):
        arguments["validation_mode"] = bool(validation)
    for name, value in config.items():
        if name not in published.names:
            raise ValueError(f"{cls} has the argument {name!r}, unknown to l2o")
        if cls == "celo.CeloAdam" and isinstance(value, (list, tuple)):
            if len(value) != 1:
                raise ValueError(f"celo_adam has one decay each, not {name}={value}")
            (value,) = value
        if name == "regex_1d":
            value = value or None
        arguments[published.names[name]] = value
    return published.factory, translated(find_factory(published.factory), arguments)
