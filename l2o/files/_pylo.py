"""The weights of PyLO's networks, which are PyTorch modules.

`MetaMLP` and the two of VeLO keep (out, in) matrices, `CELO2MLP` (in, out) ones. Square
matrices would load without complaint if a transpose were forgotten: replayed traces
hold this file to account.

Source: "PyLO: Towards accessible learned optimizers in PyTorch" (Janson et al., 2025).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._base import LearnedOptimizer, Theta
from .._registry import make
from ..rule._features import feature_sizes
from ._reading import check_numbers
from ._trees import blank_theta

Arrays = Mapping[str, Any]

# PyLO keeps muLO's learned decay offsets in its code, not with the weights.
MULO_OFFSETS = {
    "momentum_decays": (0.15216392, 0.14245212, 0.06812963),
    "rms_decays": (0.01079706,),
    "adafactor_decays": (0.18621896, -0.10864615, -0.06185547),
}
_VELO_RNN = {
    ("mix", "dead"): "mix_layer1",
    ("mix", "pooled"): "mix_layer2",
    ("mix", "direct"): "final_mix_layer",
    ("lstm",): "lstm.linear",
    ("controls",): "rnn_to_controls",
    ("step_size",): "step_size",
}


def network_of(arrays: Arrays) -> str | None:
    """Which network the names are of: MetaMLP, CELO2MLP, VeLORNN, VeLOMLP, or None."""
    if "network.input.weight" in arrays:
        return "MetaMLP"
    if "w0.0" in arrays and "dense_w.0" in arrays:
        return "CELO2MLP"
    if "lstm.linear.weight" in arrays:
        return "VeLORNN"
    if "input_weights_" in arrays:
        return "VeLOMLP"
    return None


def from_pylo(
    name: str, arrays: Arrays, **arguments: Any
) -> tuple[LearnedOptimizer, Theta]:
    """An optimizer and its theta from the arrays of PyLO's modules.

    Args:
      name: the factory: "elo" or "mulo" (MetaMLP), "celo2", "celo2_base" or
        "elo_celo2" (CELO2MLP), "velo" (VeLORNN and VeLOMLP in one mapping).
      arrays: by PyLO's names, without a prefix.
      **arguments: of the factory, besides the sizes, which the arrays tell. For "mulo"
        theta's decay offsets are PyLO's constants unless the arrays have them.

    Raises:
      ValueError: arrays are missing, unknown, of another shape or not finite.
    """
    kinds = {"elo": _MLP, "mulo": _MLP, "velo": _VELO}
    kinds |= dict.fromkeys(("celo2", "celo2_base", "elo_celo2"), _CELO2)
    if name not in kinds:
        raise ValueError(f"PyLO has no weights for {name!r}")
    sizes_of, theta_of = kinds[name]
    with np.errstate(over="ignore"):  # what is too large is refused
        arrays = {key: np.asarray(x, np.float32) for key, x in arrays.items()}
    check_numbers(arrays, f"the weights of PyLO's {name}")
    if name == "mulo":
        offsets = {key: np.array(x, np.float32) for key, x in MULO_OFFSETS.items()}
        arrays = {**offsets, **arrays}
    try:
        optimizer = make(name, **{**sizes_of(arrays), **arguments})
    except KeyError as error:
        raise ValueError(f"the weights of PyLO's {name} lack {error}") from None
    blank = blank_theta(optimizer)
    expected: dict[str, Any] = {}
    for part in to_pylo(optimizer, blank).values():
        expected |= part
    if name == "mulo":
        expected |= {key: blank[key] for key in MULO_OFFSETS}
    for key in sorted(expected.keys() | arrays.keys()):
        problem = None
        if key not in arrays:
            problem = f"lack {key}"
        elif key not in expected and _mixed_from(key) not in expected:
            problem = f"have unknown {key}"
        elif key in expected and arrays[key].shape != expected[key].shape:
            problem = f"have {key} of shape {arrays[key].shape}, expected "
            problem += str(expected[key].shape)
        if problem is not None:
            raise ValueError(f"the weights of PyLO's {name} {problem}")
    theta = theta_of(arrays, optimizer.arguments["hidden_layers"])
    if name == "mulo":
        theta |= {key: arrays[key] for key in MULO_OFFSETS}
    return optimizer, jax.tree.map(jnp.asarray, theta)


def to_pylo(optimizer: LearnedOptimizer, theta: Theta) -> dict[str, dict[str, Any]]:
    """Per network of PyLO its arrays: the inverse of `from_pylo`.

    Raises:
      ValueError: PyLO has no such class, or not with these arguments.
    """
    name = optimizer.name
    if name in ("elo", "mulo", "small_fc"):
        return {"MetaMLP": _to_meta_mlp(theta)}
    if name in ("celo2", "celo2_base", "elo_celo2"):
        return {"CELO2MLP": _to_celo2_mlp(optimizer, theta)}
    if name == "velo":
        if "dead" not in theta.get("mix", {}):
            raise ValueError("PyLO's VeLO has the dead mixing layer: keep it in theta")
        return {"VeLORNN": _to_velo_rnn(theta), "VeLOMLP": _to_velo_mlp(theta)}
    raise ValueError(
        f"PyLO has no {name!r}; it has elo, mulo, small_fc, celo2, celo2_base, "
        "elo_celo2 and velo"
    )


def _layers(count: int) -> list[str]:
    return ["input", *(f"linear_{i}" for i in range(count - 1)), "output"]


def _bank_layers(count: int) -> list[str]:
    return ["input_{}_", *(f"hidden_{{}}_.{i}" for i in range(count - 1)), "output_{}_"]


def _count(arrays: Arrays, pattern: str) -> int:
    """One more than the largest number in the names; more than there are is wrong."""
    numbers = [re.fullmatch(pattern, key) for key in arrays]
    largest = max((int(found[1]) for found in numbers if found), default=-1)
    return min(largest + 1, len(arrays))


def _mlp_sizes(arrays):
    return {
        "hidden_size": arrays["network.input.bias"].size,
        "hidden_layers": 1 + _count(arrays, r"network\.linear_([0-9]{1,4})\..*"),
    }


def _from_meta_mlp(arrays, hidden_layers):
    nn = {}
    for i, layer in enumerate(_layers(hidden_layers)):
        nn[f"w{i}"] = arrays[f"network.{layer}.weight"].T
        nn[f"b{i}"] = arrays[f"network.{layer}.bias"]
    return {"nn": nn}


def _to_meta_mlp(theta):
    nn = theta["nn"]
    arrays = {}
    for i, layer in enumerate(_layers(len(nn) // 2 - 1)):
        arrays[f"network.{layer}.weight"] = np.asarray(nn[f"w{i}"]).T
        arrays[f"network.{layer}.bias"] = np.asarray(nn[f"b{i}"])
    return arrays


def _celo2_sizes(arrays):
    return {
        "hidden_size": arrays["b0"].size,
        "hidden_layers": _count(arrays, r"dense_[wb]\.([0-9]{1,4})"),
    }


def _from_celo2_mlp(arrays, hidden_layers):
    groups = [f"w0.{i}" for i in range(_count(arrays, r"w0\.([0-9]{1,4})"))]
    nn = {"w0": np.concatenate([arrays[key] for key in groups]), "b0": arrays["b0"]}
    for j in range(hidden_layers):
        nn[f"w{j + 1}"] = arrays[f"dense_w.{j}"]
        nn[f"b{j + 1}"] = arrays[f"dense_b.{j}"]
    return {"nn": nn}


def _to_celo2_mlp(optimizer, theta):
    arguments, nn = optimizer.arguments, theta["nn"]
    names = ("momentum_decays", "rms_decays", "adafactor_decays")
    counts = feature_sizes(
        arguments["features"], *(len(arguments[name]) for name in names)
    )
    groups = np.split(np.asarray(nn["w0"]), np.cumsum(counts)[:-1])
    arrays = {f"w0.{i}": group for i, group in enumerate(groups)}
    arrays["b0"] = np.asarray(nn["b0"])
    for j in range(1, len(nn) // 2):
        arrays[f"dense_w.{j - 1}"] = np.asarray(nn[f"w{j}"])
        arrays[f"dense_b.{j - 1}"] = np.asarray(nn[f"b{j}"])
    return arrays


def _velo_sizes(arrays):
    bank = arrays["rnn_to_controls.bias"].size
    return {
        "lstm_hidden_size": arrays["lstm.linear.bias"].size // 4,
        "param_inits": bank,
        "hidden_size": arrays["input_bias_"].size // max(bank, 1),
        "hidden_layers": 1 + _count(arrays, r"hidden_(?:weights|bias)_\.([0-9]{1,4})"),
    }


def _from_velo(arrays, hidden_layers):
    theta: dict[str, Any] = {
        "lstm_init": {
            "hidden": arrays["lstm_init_state.0"],
            "cell": arrays["lstm_init_state.1"],
        }
    }
    for path, layer in _VELO_RNN.items():
        node = theta
        for key in path:
            node = node.setdefault(key, {})
        node["w"], node["b"] = arrays[f"{layer}.weight"].T, arrays[f"{layer}.bias"]
    bank = {}
    for i, layer in enumerate(_bank_layers(hidden_layers)):
        bank[f"w{i}"] = np.swapaxes(arrays[layer.format("weights")], -1, -2)
        bank[f"b{i}"] = arrays[layer.format("bias")]
    return {**theta, "bank": bank}


def _to_velo_rnn(theta):
    arrays = {
        "lstm_init_state.0": np.asarray(theta["lstm_init"]["hidden"]),
        "lstm_init_state.1": np.asarray(theta["lstm_init"]["cell"]),
    }
    for path, layer in _VELO_RNN.items():
        node = theta
        for key in path:
            node = node[key]
        arrays[f"{layer}.weight"] = np.asarray(node["w"]).T
        arrays[f"{layer}.bias"] = np.asarray(node["b"])
    return arrays


def _to_velo_mlp(theta):
    arrays = {}
    for i, layer in enumerate(_bank_layers(len(theta["bank"]) // 2 - 1)):
        weights = np.asarray(theta["bank"][f"w{i}"])
        arrays[layer.format("weights")] = np.swapaxes(weights, -1, -2)
        arrays[layer.format("bias")] = np.asarray(theta["bank"][f"b{i}"])
    return arrays


def _mixed_from(key: str) -> str:
    """Of which part of the bank VeLO's file keeps, under `key`, what was last mixed."""
    name, dot, number = key.partition(".")
    return f"{name}_{dot}{number}"


_MLP = _mlp_sizes, _from_meta_mlp
_CELO2 = _celo2_sizes, _from_celo2_mlp
_VELO = _velo_sizes, _from_velo
