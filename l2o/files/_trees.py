"""The theta trees of google/learned_optimization and amoudgl/celo, and ours.

A published tree is a dict of dicts whose leaves are arrays; some of its keys contain a
slash. Per architecture one layout says which published leaves make up a leaf of theta;
it serves reading and writing, weight files (`_foreign.py`) and recorded traces
(`scripts/checks/check_traces.py`).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._base import LearnedOptimizer, Theta
from .._registry import make
from ..rule._features import check_features, feature_sizes
from ._reading import check_numbers
from ._recorded import check_recorded, extent

Path = tuple[str, ...]
Tree = Mapping[str, Any]

_NUMBERS = (np.ndarray, np.generic, jax.Array, int, float)
# With so many digits that no network has more layers or units.
_SCALAR = re.compile(r"[wb][0-9]{1,4}(_[0-9]{1,4}){1,3}")
_BIAS = re.compile(r"b[0-9]{1,4}")
_DECAYS = ("momentum_decays", "rms_decays", "adafactor_decays")


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
    dead = () if _has_dead_layer(optimizer.arguments) else ("linear",)
    others = [path for path in flat if path not in expected]
    unknown = ["/".join(path) for path in others if not set(dead) & set(path)]
    if unknown:
        problems.insert(len(missing[:1]), f"it has unknown {', '.join(unknown[:3])}")
    if problems:
        raise ValueError(
            f"{what} does not fit {optimizer.name}({_brief(optimizer)}): "
            f"{'; '.join(problems[:4])}"
        )
    with np.errstate(over="ignore"):  # what is too large is refused
        arrays = {path: np.asarray(flat[path], np.float32) for path in expected}
    check_numbers({"/".join(path): x for path, x in arrays.items()}, what)
    theta = {}
    for ours, theirs in layout.items():
        pieces = [arrays[path] for path in theirs]
        array = np.concatenate(pieces, -2) if len(pieces) > 1 else pieces[0]
        theta[ours] = jnp.asarray(array)
    return nest(theta)


def _has_dead_layer(arguments: Mapping[str, Any]) -> bool:
    return "dead_mix_layer" in arguments.get("published", ("dead_mix_layer",))


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
    shapes = {p: np.shape(x) for p, x in flat.items() if isinstance(x, _NUMBERS)}
    known = _known(keys, shapes)
    if known is None:
        return None
    name, arguments = known
    check_recorded(name, arguments, extent(list(shapes.values())))
    return make(name, **arguments)


def _known(
    keys: set[str], shapes: Mapping[Path, tuple[int, ...]]
) -> tuple[str, dict[str, Any]] | None:
    """The factory and the arguments that the keys and shapes tell."""
    try:
        if "per_layer_lr" in keys:
            size = shapes["lstm_init_state", "hidden"][-1]
            return "nn_adam", {"lstm_hidden_size": size}
        if "log_epsilon" in keys:
            return "learnable_adam", {"eps_root": 1e-8}
        if "log_lr" in keys:
            momentum = "one_minus_momentum" in keys
            return "learnable_sgdm" if momentum else "learnable_sgd", {}
        if "initial_from_mlp" in keys:
            return "rnn_mlp", _rnn_mlp_sizes(shapes)
        if "nn" in keys and "momentum_decays" in keys:
            hidden, layers = _hidden(shapes, ("nn", "~"))
            return "small_fc", {"hidden_size": hidden, "hidden_layers": layers}
        if any(key.startswith("mlp/~/linear_") for key in keys):
            layers = sum(path[-1] == "w" for path in shapes) - 1
            hidden = shapes["mlp/~/linear_0", "w"][-1]
            return "mlp", {"hidden_size": hidden, "hidden_layers": layers}
        if keys == {"ff_mod_stack"}:
            hidden, layers = _hidden(shapes, ("ff_mod_stack", "~"))
            return "celo2_base", {"hidden_size": hidden, "hidden_layers": layers}
        if "rnn_params" in keys:
            return _known_recurrent(shapes, "ff_mod_stack" in keys)
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
    return {**_elo_layout(arguments), **{(name,): (name,) for name in _DECAYS}}


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
        if _has_dead_layer(arguments):
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
    decays = [len(arguments[name]) for name in _DECAYS]
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
    scalars = {k: x for k, x in leaves.items() if _SCALAR.fullmatch(k)}
    numbers = (isinstance(x, _NUMBERS) and np.ndim(x) == 0 for x in scalars.values())
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
        if path[:-1] == prefix and _BIAS.fullmatch(path[-1])
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


def _known_recurrent(shapes, has_bank: bool) -> tuple[str, dict[str, Any]] | None:
    size = shapes["lstm_init_state", "hidden"][-1]
    inputs = shapes["rnn_params", "linear_1", "w"][0]
    if not has_bank:
        return "celo_adam", {"lstm_hidden_size": size}
    hidden, layers = _hidden(shapes, ("ff_mod_stack", "~"))
    bank = shapes["ff_mod_stack", "~", "b0"][0]
    # Celo's network sees 18 features of the run, VeLO's 12 of each tensor besides.
    name = {18: "celo", 30: "velo"}.get(inputs)
    if name is None:
        return None
    return name, {
        "lstm_hidden_size": size,
        "param_inits": bank,
        "hidden_size": hidden,
        "hidden_layers": layers,
    }


def _brief(optimizer: LearnedOptimizer) -> str:
    sizes = ("lstm_hidden_size", "param_inits", "hidden_size", "hidden_layers")
    return ", ".join(
        f"{name}={optimizer.arguments[name]}"
        for name in sizes
        if name in optimizer.arguments
    )
