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

from ._base import LearnedOptimizer, Theta
from ._features import feature_sizes
from ._registry import make

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
      ValueError: arrays are missing, unknown or of another shape.
    """
    arrays = {key: np.asarray(x) for key, x in arrays.items()}
    try:
        if name in ("elo", "mulo"):
            sizes, theta, known = _meta_mlp(name, arrays)
        elif name in ("celo2", "celo2_base", "elo_celo2"):
            sizes, theta, known = _celo2_mlp(arrays)
        elif name == "velo":
            sizes, theta, known = _velo(arrays)
        else:
            raise ValueError(f"PyLO has no weights for {name!r}")
    except KeyError as error:
        raise ValueError(f"the weights of PyLO's {name} lack {error}") from None
    # VeLO's file also holds what was last mixed, under names without the final _.
    scratch = {key for key in arrays if f"{key}_" in arrays or _scratch(key) in arrays}
    unknown = sorted(set(arrays) - known - scratch)
    if unknown:
        raise ValueError(f"the weights of PyLO's {name} have unknown {unknown[0]}")
    optimizer = make(name, **{**sizes, **arguments})
    expected = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)
    found, wanted = (
        {jax.tree_util.keystr(p): x.shape for p, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (theta, expected))
    )
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"the weights of PyLO's {name} have {key} of shape {found.get(key)}, "
                f"expected {wanted.get(key)}"
            )
    return optimizer, theta


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


def _meta_mlp(name, arrays):
    hidden_layers = 1 + sum(
        re.fullmatch(r"network\.linear_\d+\.weight", key) is not None for key in arrays
    )
    nn, known = {}, set()
    for i, layer in enumerate(_layers(hidden_layers)):
        weight, bias = f"network.{layer}.weight", f"network.{layer}.bias"
        nn[f"w{i}"], nn[f"b{i}"] = arrays[weight].T, arrays[bias]
        known |= {weight, bias}
    theta = {"nn": nn}
    if name == "mulo":
        for key, offsets in MULO_OFFSETS.items():
            theta[key] = arrays.get(key, np.float32(offsets))
            known.add(key)
    sizes = {"hidden_size": len(nn["b0"]), "hidden_layers": hidden_layers}
    return sizes, theta, known


def _to_meta_mlp(theta):
    nn = theta["nn"]
    arrays = {}
    for i, layer in enumerate(_layers(len(nn) // 2 - 1)):
        arrays[f"network.{layer}.weight"] = np.asarray(nn[f"w{i}"]).T
        arrays[f"network.{layer}.bias"] = np.asarray(nn[f"b{i}"])
    return arrays


def _celo2_mlp(arrays):
    groups = [f"w0.{i}" for i in range(sum(key.startswith("w0.") for key in arrays))]
    dense = sum(key.startswith("dense_w.") for key in arrays)
    nn = {"w0": np.concatenate([arrays[key] for key in groups]), "b0": arrays["b0"]}
    known = {*groups, "b0"}
    for j in range(dense):
        nn[f"w{j + 1}"] = arrays[f"dense_w.{j}"]
        nn[f"b{j + 1}"] = arrays[f"dense_b.{j}"]
        known |= {f"dense_w.{j}", f"dense_b.{j}"}
    sizes = {"hidden_size": len(nn["b0"]), "hidden_layers": dense}
    return sizes, {"nn": nn}, known


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


def _velo(arrays):
    theta: dict[str, Any] = {
        "lstm_init": {
            "hidden": arrays["lstm_init_state.0"],
            "cell": arrays["lstm_init_state.1"],
        }
    }
    known = {"lstm_init_state.0", "lstm_init_state.1"}
    for path, layer in _VELO_RNN.items():
        node = theta
        for key in path:
            node = node.setdefault(key, {})
        node["w"], node["b"] = arrays[f"{layer}.weight"].T, arrays[f"{layer}.bias"]
        known |= {f"{layer}.weight", f"{layer}.bias"}
    bank = {}
    hidden_layers = 1 + sum(key.startswith("hidden_weights_.") for key in arrays)
    for i, layer in enumerate(_bank_layers(hidden_layers)):
        weight = layer.format("weights")
        bias = layer.format("bias")
        bank[f"w{i}"] = np.swapaxes(arrays[weight], -1, -2)
        bank[f"b{i}"] = arrays[bias]
        known |= {weight, bias}
    theta["bank"] = bank
    size, hidden = bank["b0"].shape
    sizes = {
        "lstm_hidden_size": theta["lstm_init"]["hidden"].shape[-1],
        "param_inits": size,
        "hidden_size": hidden,
        "hidden_layers": hidden_layers,
    }
    return sizes, theta, known


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


def _scratch(key: str) -> str:
    return re.sub(r"^(hidden_(?:weights|bias))\.", r"\1_.", key)
