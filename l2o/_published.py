"""The classes of google/learned_optimization and amoudgl/celo, and their theta trees.

A published tree is a dict of dicts whose leaves are arrays; some of its keys contain a
slash. What their constructor arguments and trees mean here is said once, for weight
files (`_foreign.py`) and for recorded traces (`scripts/check_traces.py`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._base import LearnedOptimizer, Theta
from ._features import FEATURES, check_features, feature_sizes
from ._registry import make

Path = tuple[str, ...]
Tree = Mapping[str, Any]

_NUMBERS = (np.ndarray, np.generic, jax.Array, int, float)
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
    "clip_param_scale_amount": "clip_param_scale_amount",
    **_DECAYS,
    **{name: name for name in (*_SAME_RECURRENT, *_SAME_RULE)},
}
_CELO2_RULE = {
    "ff_hidden_size": "hidden_size",
    "ff_hidden_layers": "hidden_layers",
    "mlp_activation": "activation",
    "step_mult": "learning_rate",
    **_DECAYS,
    **{
        name: name
        for name in (
            "weight_decay",
            "exp_mult",
            "rmsmult",
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
            **{
                name: name
                for name in (
                    "hidden_size",
                    "from_mlp_size",
                    "from_lstm_size",
                    "lstm_to_ff",
                    "lstm_hidden_size",
                    "decays",
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
            "output_scale": "output_scale",
            "decay_strength": "decay_strength",
            "lstm_hidden_size": "lstm_hidden_size",
        },
    ),
    "learned_optimization.HyperV2": Published(
        "velo",
        {
            **_RULE,
            "use_bugged_next_lstm_state": "use_bugged_next_lstm_state",
            "use_bugged_loss_features": "use_bugged_loss_features",
        },
        {**_HYPER_DEFAULTS, "use_bugged_loss_features": True, "ff_mult": 100.0},
        _REPORTS,
    ),
    "celo.HyperV2": Published(
        "velo",
        {
            **_RULE,
            "ff_mult": "ff_mult",
            "use_bugged_next_lstm_state": "use_bugged_next_lstm_state",
            "use_bugged_loss_features": "use_bugged_loss_features",
        },
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
    return make(published.factory, **arguments)


def from_tree(tree: Tree, optimizer: LearnedOptimizer, what: str = "theta") -> Theta:
    """Theta of a published tree.

    Raises:
      ValueError: the tree is not one of this optimizer; the message says what is
        missing, unknown or of another shape. It begins with `what`.
    """
    flat = flatten(_joined_scalars(tree))
    layout = _layout(optimizer)
    # Each piece has to fit: two groups of features exchanged have the right sum.
    expected = flatten(to_tree(blank_theta(optimizer), optimizer))
    problems, missing = [], []
    for path, array in expected.items():
        name, found = "/".join(path), flat.get(path)
        if found is None:
            missing.append(name)
        elif not isinstance(found, _NUMBERS):
            problems.append(f"{name} is a {type(found).__name__}")
        elif np.shape(found) != array.shape:
            problems.append(f"{name} is {np.shape(found)}, expected {array.shape}")
    if missing:
        problems.insert(0, f"it lacks {', '.join(missing[:3])}")
    dead = () if optimizer.arguments.get("dead_mix_layer", True) else ("linear",)
    others = [path for path in flat if path not in expected]
    unknown = ["/".join(path) for path in others if not set(dead) & set(path)]
    if unknown:
        problems.insert(len(missing[:1]), f"it has unknown {', '.join(unknown[:3])}")
    if problems:
        raise ValueError(
            f"{what} does not fit {optimizer.name}({_brief(optimizer)}): "
            f"{'; '.join(problems[:4])}"
        )
    theta = {}
    for ours, theirs in layout.items():
        pieces = [np.asarray(flat[path]) for path in theirs]
        array = np.concatenate(pieces, -2) if len(pieces) > 1 else pieces[0]
        theta[ours] = jnp.asarray(array, jnp.float32)
    return nest(theta)


def to_tree(theta: Theta, optimizer: LearnedOptimizer) -> dict[str, Any]:
    """The published tree of theta: the inverse of `from_tree`."""
    flat, tree = _flat_theta(theta), {}
    for ours, theirs in _layout(optimizer).items():
        if len(theirs) == 1:
            tree[theirs[0]] = np.asarray(flat[ours])
            continue
        sizes = _group_sizes(optimizer)
        pieces = np.split(np.asarray(flat[ours]), np.cumsum(sizes)[:-1], -2)
        tree |= dict(zip(theirs, pieces, strict=True))
    return nest(tree)


def identify(tree: Tree) -> LearnedOptimizer | None:
    """The optimizer that a published tree is of, told by its keys and shapes; or None.

    What the shapes do not tell (decays, multipliers, bug flags) has our defaults, which
    are those of the published weights.
    """
    flat = flatten(_joined_scalars(tree))
    keys = set(tree)
    shapes = {path: np.shape(x) for path, x in flat.items()}
    try:
        if "per_layer_lr" in keys:
            size = shapes["lstm_init_state", "hidden"][-1]
            return make("nn_adam", lstm_hidden_size=size)
        if "log_epsilon" in keys:
            return make("learnable_adam", eps_root=1e-8)
        if "log_lr" in keys:
            momentum = "one_minus_momentum" in keys
            return make("learnable_sgdm" if momentum else "learnable_sgd")
        if "initial_from_mlp" in keys:
            return make("rnn_mlp", **_rnn_mlp_sizes(shapes))
        if "nn" in keys and "momentum_decays" in keys:
            hidden, layers = _hidden(shapes, ("nn", "~"))
            return make("small_fc", hidden_size=hidden, hidden_layers=layers)
        if any(key.startswith("mlp/~/linear_") for key in keys):
            layers = sum(path[-1] == "w" for path in shapes) - 1
            hidden = shapes["mlp/~/linear_0", "w"][-1]
            return make("mlp", hidden_size=hidden, hidden_layers=layers)
        if keys == {"ff_mod_stack"}:
            hidden, layers = _hidden(shapes, ("ff_mod_stack", "~"))
            name = "celo2_base"
            return make(name, hidden_size=hidden, hidden_layers=layers)
        if "rnn_params" in keys:
            return _identify_recurrent(shapes, "ff_mod_stack" in keys)
    except (KeyError, IndexError):
        return None
    return None


def blank_theta(optimizer: LearnedOptimizer) -> Theta:
    """Zeros of theta's structure and shapes, without memory of that size."""
    return jax.tree.map(
        lambda x: np.broadcast_to(np.float32(0), x.shape),
        jax.eval_shape(optimizer.init_theta, jax.random.key(0)),
    )


def flatten(tree: Tree, prefix: Path = ()) -> dict[Path, Any]:
    """Leaves by the tuple of keys that leads to them."""
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, (*prefix, str(key)))
        else:
            flat[(*prefix, str(key))] = value
    return flat


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def _layout(optimizer: LearnedOptimizer) -> dict[Path, list[Path]]:
    """Per leaf of theta the published leaves that make it up, along axis -2."""
    builders: dict[str, Callable[[Mapping[str, Any]], dict[Path, Any]]] = {
        "mlp": _mlp_layout,
        "small_fc": _small_fc_layout,
        "mulo": _small_fc_layout,
        "elo": _elo_layout,
        "rnn_mlp": _rnn_mlp_layout,
        "nn_adam": _nn_adam_layout,
        "learnable_sgd": lambda _: _scalars({"log_lr": "log_lr"}),
        "learnable_sgdm": lambda _: _scalars(
            {"log_lr": "log_lr", "log_one_minus_momentum": "one_minus_momentum"}
        ),
        "learnable_adam": lambda _: _scalars(
            {
                "log_lr": "log_lr",
                "log_one_minus_b1": "one_minus_beta1",
                "log_one_minus_b2": "one_minus_beta2",
                "log_eps": "log_epsilon",
            }
        ),
        "velo": _velo_layout,
        "celo": _velo_layout,
        "celo_adam": _recurrent_layout,
        "celo2_base": _celo2_layout,
        "celo2": _celo2_layout,
        "elo_celo2": _celo2_layout,
    }
    if optimizer.name not in builders:
        known = ", ".join(builders)
        raise ValueError(f"{optimizer.name!r} has no published tree; known: {known}")
    layout = builders[optimizer.name](optimizer.arguments)
    return {k: v if isinstance(v, list) else [v] for k, v in layout.items()}


def _scalars(names: Mapping[str, str]) -> dict[Path, Any]:
    return {(ours,): (theirs,) for ours, theirs in names.items()}


def _linear_layout(ours: Path, theirs: Path) -> dict[Path, Any]:
    return {(*ours, leaf): (*theirs, leaf) for leaf in ("w", "b")}


def _haiku_mlp(ours: str, theirs: Path, layers: int) -> dict[Path, Any]:
    return {
        (ours, f"{leaf}{i}"): (*theirs, f"mlp/~/linear_{i}", leaf)
        for i in range(layers)
        for leaf in ("w", "b")
    }


def _plain_mlp(ours: str, theirs: Path, layers: int) -> dict[Path, Any]:
    names = [f"{leaf}{i}" for i in range(layers) for leaf in ("w", "b")]
    return {(ours, name): (*theirs, name) for name in names}


def _mlp_layout(arguments):
    return _haiku_mlp("nn", (), arguments["hidden_layers"] + 1)


def _elo_layout(arguments):
    return _plain_mlp("nn", ("nn", "~"), arguments["hidden_layers"] + 1)


def _small_fc_layout(arguments):
    names = ("momentum_decays", "rms_decays", "adafactor_decays")
    return {**_elo_layout(arguments), **{(name,): (name,) for name in names}}


def _lstm_layout():
    return {
        ("lstm_init", "hidden"): ("lstm_init_state", "hidden"),
        ("lstm_init", "cell"): ("lstm_init_state", "cell"),
        **_linear_layout(("lstm",), ("rnn_params", "rnn/linear")),
    }


def _rnn_mlp_layout(arguments):
    return {
        **_lstm_layout(),
        ("initial_from_lstm",): ("initial_from_lstm",),
        ("initial_from_mlp",): ("initial_from_mlp",),
        **_linear_layout(("rnn_to_ff",), ("rnn_to_ff_params", "rnn_to_ff")),
        **_linear_layout(("rnn_to_in",), ("rnn_to_in_params", "rnn_to_in")),
        **_haiku_mlp("nn", ("ffmod_params",), arguments["hidden_layers"] + 1),
    }


def _nn_adam_layout(arguments):
    del arguments
    controls = ("rnn_to_controls_params", "rnn_to_controls")
    names = {"lr": "lr", "b1": "beta1", "b2": "beta2", "eps": "epsilon"}
    return {
        **_lstm_layout(),
        **_linear_layout(("controls",), controls),
        **_scalars({ours: f"per_layer_{theirs}" for ours, theirs in names.items()}),
    }


def _recurrent_layout(arguments):
    layout = {
        **_lstm_layout(),
        **_linear_layout(("step_size",), ("rnn_params", "step_size")),
    }
    if arguments["mix_layers"]:
        if arguments["dead_mix_layer"]:
            layout |= _linear_layout(("mix", "dead"), ("rnn_params", "linear"))
        layout |= _linear_layout(("mix", "pooled"), ("rnn_params", "linear_1"))
        layout |= _linear_layout(("mix", "direct"), ("rnn_params", "linear_2"))
    return layout


def _velo_layout(arguments):
    return {
        **_recurrent_layout(arguments),
        **_linear_layout(("controls",), ("rnn_params", "rnn_to_controls")),
        **_stack_layout("bank", arguments),
    }


def _celo2_layout(arguments):
    return _stack_layout("nn", arguments)


def _stack_layout(ours, arguments):
    stack = ("ff_mod_stack", "~")
    layout = _plain_mlp(ours, stack, arguments["hidden_layers"] + 1)
    groups = len(check_features(arguments["features"]))
    layout[ours, "w0"] = [(*stack, f"w0__{i}") for i in range(groups)]
    return layout


def _group_sizes(optimizer: LearnedOptimizer) -> list[int]:
    arguments = optimizer.arguments
    decays = [len(arguments[name]) for name in _DECAYS.values()]
    return feature_sizes(check_features(arguments["features"]), *decays)


def _flat_theta(theta: Theta) -> dict[Path, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def _joined_scalars(tree: Tree) -> Tree:
    """small_fc's weights may be kept as scalars `w0_3_1`, `b0_1`: joins them."""
    node: Any = tree.get("nn")
    leaves = node.get("~") if isinstance(node, Mapping) else None
    if not isinstance(leaves, Mapping):
        return tree
    scalars = {k: x for k, x in leaves.items() if re.fullmatch(r"[wb]\d+(_\d+)+", k)}
    numbers = (np.ndim(x) == 0 and isinstance(x, _NUMBERS) for x in scalars.values())
    if not scalars or not all(numbers):
        return tree
    joined: dict[str, Any] = dict(leaves)
    places: dict[str, dict[tuple[int, ...], float]] = {}
    for name, value in scalars.items():
        array, *index = name.split("_")
        places.setdefault(array, {})[tuple(map(int, index))] = float(value)
    for array, values in places.items():
        shape = tuple(max(axis) + 1 for axis in zip(*values, strict=False))
        if len(set(map(len, values))) > 1 or len(values) != math.prod(shape):
            continue  # one is missing: the others will be named
        for index in values:
            joined.pop("_".join([array, *map(str, index)]), None)
        ordered = [values[index] for index in sorted(values)]
        joined[array] = np.reshape(np.array(ordered, np.float32), shape)
    return {**tree, "nn": {**node, "~": joined}}


def _hidden(shapes: Mapping[Path, tuple], prefix: Path) -> tuple[int, int]:
    biases = sorted(
        int(path[-1][1:])
        for path in shapes
        if path[:-1] == prefix and re.fullmatch(r"b\d+", path[-1])
    )
    return shapes[*prefix, "b0"][-1], biases[-1]


def _rnn_mlp_sizes(shapes):
    layers = sum(p[0] == "ffmod_params" and p[-1] == "w" for p in shapes) - 1
    return {
        "hidden_size": shapes["ffmod_params", "mlp/~/linear_0", "w"][-1],
        "hidden_layers": layers,
        "from_mlp_size": shapes[("initial_from_mlp",)][-1],
        "from_lstm_size": shapes[("initial_from_lstm",)][-1],
        "lstm_to_ff": shapes["rnn_to_ff_params", "rnn_to_ff", "w"][-1],
        "lstm_hidden_size": shapes["lstm_init_state", "hidden"][-1],
    }


def _identify_recurrent(shapes, has_bank: bool) -> LearnedOptimizer | None:
    size = shapes["lstm_init_state", "hidden"][-1]
    inputs = shapes["rnn_params", "linear_1", "w"][0]
    if not has_bank:
        return make("celo_adam", lstm_hidden_size=size)
    hidden, layers = _hidden(shapes, ("ff_mod_stack", "~"))
    bank = shapes["ff_mod_stack", "~", "b0"][0]
    # Celo's network sees 18 features of the run, VeLO's 12 of each tensor besides.
    name = {18: "celo", 30: "velo"}.get(inputs)
    if name is None:
        return None
    return make(
        name,
        lstm_hidden_size=size,
        param_inits=bank,
        hidden_size=hidden,
        hidden_layers=layers,
    )


def _brief(optimizer: LearnedOptimizer) -> str:
    sizes = ("lstm_hidden_size", "param_inits", "hidden_size", "hidden_layers")
    return ", ".join(
        f"{name}={optimizer.arguments[name]}"
        for name in sizes
        if name in optimizer.arguments
    )
