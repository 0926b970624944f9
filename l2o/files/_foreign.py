"""Weight files that others wrote: read without running anything that is in them.

| written by | looks like |
|---|---|
| google/learned_optimization | a file `params`, or a folder with it and `config.gin` |
| amoudgl/celo | a file `theta.state`, or a folder with it |
| PyLO | a folder with `model.safetensors` and its own `config.json` |

The first two are flax's msgpack. Which architecture a file is of is told by its keys
and shapes; what those do not tell has the defaults of the published weights, and can
be given by hand.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import ml_dtypes
import msgpack
import numpy as np
import safetensors.numpy

from .._base import LearnedOptimizer, Theta
from .._options import defaults_of
from .._registry import find_factory, make, present_names
from ..recurrent._options import Defect
from ._published import CLASSES, our_arguments, published_class
from ._pylo import MULO_OFFSETS, from_pylo, network_of, to_pylo
from ._reading import (
    Malformed,
    check_numbers,
    read_json,
    read_safetensors,
    read_text,
    reading,
)
from ._recorded import check_recorded, extent
from ._trees import flatten, from_tree, identify

_STATES = ("theta.state", "params")
_GIN = "config.gin"
_PYLO_WEIGHTS = "model.safetensors"
_PYLO_CONFIG = "config.json"
_PYLO_DECAYS = "decays.json"
# Fields of a named tuple: flax writes no other lists.
_LIST = 1000
# VeLO's files from before there were configs were trained with both.
_OLD_VELO = {"published": get_args(Defect)}
# Per network of PyLO.
_FACTORIES = {
    "MetaMLP": ("elo", "mulo"),
    "CELO2MLP": ("celo2", "celo2_base", "elo_celo2"),
    "VeLORNN": ("velo",),
    "VeLOMLP": ("velo",),
}


def is_foreign(path: Path) -> bool:
    """Whether the path is a file or folder that this module reads."""
    if path.is_file():
        return True
    try:
        own = "format" in _config(path)
    except (OSError, ValueError):
        own = None  # perhaps: `read_card` says what is wrong
    if own:
        return False
    if any((path / name).is_file() for name in _STATES):
        return True
    return own is False and (path / _PYLO_WEIGHTS).is_file()


def load_foreign(
    path: Path,
    name: str | None,
    arguments: Mapping[str, Any],
    beside: Callable[[], Path] | None = None,
) -> tuple[LearnedOptimizer, Theta]:
    """The optimizer and theta of a published file or folder.

    Args:
      path: see the module's docstring.
      name: the factory, where the file does not tell; None to let it tell.
      arguments: of the factory, over what the file tells.
      beside: finds the folder with the other half of PyLO's VeLO, called for nothing
        else; by default the sibling of `path` with RNN and MLP exchanged in its name.

    Raises:
      ValueError: the file is truncated, of another kind or needs code to be read; its
        tree is not one of this architecture; the message says what was expected.
    """
    with reading(path, "weights that google, Celo or PyLO wrote"):
        return _load(path, name, arguments, beside)


def _load(path, name, arguments, beside):
    bound = None
    if path.is_dir():
        states = [path / state for state in _STATES if (path / state).is_file()]
        if not states:
            return _load_pylo(path, name, arguments, beside)
        gin, path = path / _GIN, states[0]
        bound = _gin_class(gin) if gin.is_file() else None
    content = read_flax(path)
    tree = _theta_of(content)
    if not isinstance(tree, dict):
        raise Malformed(f"{path} holds a {type(tree).__name__} for theta, not a map")
    if bound is None and _is_old(content) and name in (None, "velo"):
        found = identify(tree)
        if found is not None and found.name == "velo":
            arguments = {**_OLD_VELO, **arguments}
    if bound is not None:
        shapes = [np.shape(x) for x in flatten(tree).values() if _is_number(x)]
        with reading(gin, "arguments of a learned optimizer"):
            factory, told = our_arguments(*bound)
            check_recorded(factory, told, extent(shapes))
            optimizer = make(factory, **told)
        if name in (None, factory):
            changes = present_names(factory, arguments)
            name, arguments = factory, {**optimizer.arguments, **changes}
    optimizer = _architecture(tree, path, name, arguments)
    return optimizer, from_tree(tree, optimizer, str(path))


def read_flax(path: Path) -> dict[str, Any]:
    """The nested maps of a flax msgpack file, its arrays as NumPy's.

    Raises:
      ValueError: it is not such a file.
    """
    content = path.read_bytes()
    if content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is read: l2o does not "
            "load it. Convert it where that does not matter, with "
            "flax.serialization.to_bytes(theta)"
        )
    if content[:2] == b"PK":
        raise ValueError(
            f"{path} is a PyTorch or NumPy archive, expected flax's msgpack, or a "
            "folder with model.safetensors"
        )
    if path.name in (_PYLO_WEIGHTS, _PYLO_CONFIG):
        raise ValueError(f"{path} is part of a folder: give the folder")
    try:
        tree = msgpack.unpackb(
            content, ext_hook=_array, strict_map_key=False, max_array_len=_LIST
        )
        tree = _unchunked(tree)
    except Exception as error:  # the decoder's own classes share no base
        detail = f" ({error})" if isinstance(error, Malformed) else ""
        raise ValueError(
            f"{path} is truncated or not flax's msgpack{detail}: "
            "copy it again, or write it with flax.serialization.to_bytes(theta); "
            "pickles are not read, as they can run code"
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} holds a {type(tree).__name__}, expected a map such as "
            "flax.serialization.to_bytes(theta) writes"
        )
    return tree


def save_pylo(folder: Path, optimizer: LearnedOptimizer, theta: Theta) -> Path:
    """Writes the folder that PyLO's `from_pretrained` reads.

    VeLO's two networks get a folder each, `VeLO_RNN` and `VeLO_MLP`. The learned decays
    of small_fc and muLO, which PyLO's networks lack and its constructor takes, go to
    `decays.json`.
    """
    networks = to_pylo(optimizer, theta)
    for network, arrays in networks.items():
        here = folder
        if len(networks) > 1:
            here = folder / {"VeLORNN": "VeLO_RNN", "VeLOMLP": "VeLO_MLP"}[network]
        here.mkdir(parents=True, exist_ok=True)
        contiguous = {
            name: np.array(x, np.float32, order="C") for name, x in arrays.items()
        }
        (here / _PYLO_WEIGHTS).write_bytes(safetensors.numpy.save(contiguous))
        config = _pylo_config(network, optimizer, contiguous)
        (here / _PYLO_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        decays = {k: np.asarray(theta[k]).tolist() for k in theta if "decays" in k}
        if decays:
            (here / _PYLO_DECAYS).write_text(json.dumps(decays, indent=2) + "\n")
    return folder


def _architecture(
    tree: Mapping[str, Any],
    path: Path,
    name: str | None,
    arguments: Mapping[str, Any],
) -> LearnedOptimizer:
    found = identify(tree)
    if found is None and name is None:
        keys = ", ".join(sorted(map(str, tree))[:6])
        raise ValueError(
            f"{path} holds no theta that l2o knows (its keys are {keys}): name its "
            "architecture, `l2o.load(path, optimizer='velo', ...)`"
        )
    if found is None:
        return make(str(name), **arguments)
    if found.name == "celo2_base" and name is None:
        # The two have the same tree.
        spellings = {"celo2", "base"}, {"celo2base"}
        base = any(x <= words for x in spellings for words in _words(path))
        name = "celo2_base" if base else "celo2"
    if name in (None, found.name):
        return make(
            found.name,
            **{**found.arguments, **present_names(found.name, arguments)},
        )
    known: Any = jax.eval_shape(found.init_theta, jax.random.key(0))
    sizes = ("hidden_size", "hidden_layers", "lstm_hidden_size", "param_inits")
    name = str(name)
    takes = defaults_of(find_factory(name))
    told = {k: found.arguments[k] for k in sizes if k in found.arguments.keys() & takes}
    optimizer = make(name, **{**told, **present_names(name, arguments)})
    expected = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    if set(flatten(known)) != set(flatten(expected)):
        raise ValueError(f"{path} holds a theta of {found.name}, not of {name}")
    return optimizer


def _theta_of(tree: dict[str, Any]) -> dict[str, Any]:
    """Without what google's checkpoints wrap around theta."""
    if {"params", "gen_id", "step"} <= set(tree):
        return tree["params"]
    return tree["0"] if _is_old(tree) else tree


def _is_old(tree: Mapping[str, Any]) -> bool:
    """Whether it is the tuple (theta, "", 0), which was written without a config."""
    return set(tree) == {"0", "1", "2"} and isinstance(tree["0"], dict)


def _is_number(x: Any) -> bool:
    number = isinstance(x, np.ndarray | np.generic | int | float)
    return number and not isinstance(x, bool)


def _array(code: int, data: bytes) -> Any:
    if code not in (1, 3):
        raise Malformed(f"a msgpack extension of type {code}, expected arrays alone")
    shape, name, raw = msgpack.unpackb(data, strict_map_key=False)
    dtype = _dtype(name)
    if not _is_shape(shape) or math.prod(shape) * dtype.itemsize != len(raw):
        raise Malformed(
            f"an array of shape {shape} and type {name} in {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _dtype(name: Any) -> np.dtype:
    try:
        dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or (dtype.kind not in "biuf" and name != "bfloat16"):
        raise Malformed(f"an array of type {name}, expected numbers")
    return dtype


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and all(
        type(size) is int and size >= 0 for size in shape
    )


def _unchunked(tree: Any) -> Any:
    """Joins the arrays that flax splits because they are above a gigabyte.

    And spells named tuples as today's flax does, as maps of their fields.
    """
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"name", "fields", "values"}:
        fields, values = tree["fields"], tree["values"]
        return {str(fields[i]): _unchunked(values[i]) for i in fields}
    if "__msgpack_chunked_array__" in tree:
        try:
            shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
            chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
            flat = np.concatenate(chunks)
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed("an array in chunks that lacks some") from error
        if not _is_shape(shape) or math.prod(shape) != flat.size:
            raise Malformed(f"chunks of {flat.size} numbers, expected shape {shape}")
        return flat.reshape(shape)
    return {str(key): _unchunked(value) for key, value in tree.items()}


def _gin_class(path: Path) -> tuple[str, dict[str, Any]] | None:
    """The learned optimizer that a gin file binds to `run_train.lopt`."""
    joined = re.sub(r"\\\n", " ", read_text(path))
    prefix = r"^[ \t]*(?:[\w./]+[./])?"
    bound = re.findall(rf"{prefix}run_train\.lopt\s*=\s*(.+)$", joined, re.M)
    if not bound:
        return None
    reference = re.match(r"@(?:[\w./]+/)?([\w.]+)\(\)", bound[-1])
    if reference is None:
        raise ValueError(
            f"{path} binds run_train.lopt to {_brief(bound[-1])}, expected a class "
            f"such as @HyperV2(): move {_GIN} away and give the architecture with its "
            "arguments, `l2o.load(path, optimizer=..., ...)`"
        )
    cls = reference[1].split(".")[-1]
    known = published_class(reference[1])
    if known is None:
        names = ", ".join(sorted({key.split(".")[1] for key in CLASSES}))
        raise ValueError(f"{path} binds {cls:.60}, unknown to l2o; known: {names}")
    bindings = {}
    for line in re.finditer(rf"{prefix}{cls}\.(\w+)\s*=\s*(.+)$", joined, re.M):
        try:
            bindings[line[1]] = ast.literal_eval(line[2].strip())
        except Exception as error:  # RecursionError and MemoryError, too
            raise ValueError(
                f"{path} binds {cls}.{line[1]} to {_brief(line[2])}, expected "
                "a number, a text or a list of them on one line: write it there"
            ) from error
    return known, bindings


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _load_pylo(path, name, arguments, beside):
    arrays = _safetensors(path)
    network = network_of(arrays)
    if network is None:
        raise ValueError(
            f'{path / _PYLO_CONFIG} is not an l2o card: it lacks "format": "l2o"; nor '
            "are the weights of one of PyLO's networks MetaMLP, CELO2MLP, VeLORNN and "
            f"VeLOMLP, the first is {next(iter(arrays), None)!r}"
        )
    factories = _FACTORIES[network]
    if name is not None and name not in factories:
        known = ", ".join(factories)
        raise ValueError(f"{path} holds weights for {known}, not for {name!r}")
    if network in ("VeLORNN", "VeLOMLP"):
        return _load_velo(path, arrays, network, arguments, beside)
    name = name or _told(path, network)
    if name == "celo2":
        arguments = {"variant": "pylo", **arguments}
    config = _config(path)
    if network == "CELO2MLP" and "activation" in config:
        told = {"activation": config["activation"]}
        with reading(path / _PYLO_CONFIG, "the configuration of a CELO2MLP"):
            check_recorded(name, told, extent([x.shape for x in arrays.values()]))
        arguments = {**told, **arguments}
    decays = path / _PYLO_DECAYS
    if name == "mulo" and decays.is_file():
        arrays |= _offsets(decays)
    return from_pylo(name, arrays, **arguments)


def _offsets(path: Path) -> dict[str, np.ndarray]:
    """muLO's learned decays, which its network lacks."""
    content = read_json(path)
    lists = content if isinstance(content, dict) else {"": None}
    for name, values in lists.items():
        numbers = isinstance(values, list) and all(map(_is_number, values))
        if name not in MULO_OFFSETS or not numbers:
            raise ValueError(
                f"{path} does not hold lists of numbers by name, expected "
                f"{', '.join(MULO_OFFSETS)}: delete the file for PyLO's constants"
            )
    with reading(path, "lists of numbers by name"):
        arrays = {name: np.array(x, np.float64) for name, x in lists.items()}
        check_numbers(arrays, str(path))
    return arrays


def other_half(name: str) -> str | None:
    """The name of PyLO's other VeLO network, RNN and MLP exchanged; or None."""
    parts = re.fullmatch(r"(.*)(RNN|MLP)(.*)", name)
    if parts is None:
        return None
    return parts[1] + {"RNN": "MLP", "MLP": "RNN"}[parts[2]] + parts[3]


def _load_velo(path, arrays, network, arguments, beside):
    """VeLO is two networks: the other one lies beside this one."""
    other = "MLP" if network == "VeLORNN" else "RNN"
    if beside is not None:
        sibling = beside()
    else:
        path = path.absolute()
        sibling = path.with_name(other_half(path.name) or path.name)
    if sibling == path or not (sibling / _PYLO_WEIGHTS).is_file():
        raise ValueError(
            f"{path} is one half of PyLO's VeLO; expected the other beside it, in "
            f"{sibling if sibling != path else path.parent / ('VeLO_' + other)}"
        )
    return from_pylo("velo", {**arrays, **_safetensors(sibling)}, **arguments)


def _told(path, network):
    """The factory, by the folder's name."""
    words = set().union(*_words(path))
    if network == "CELO2MLP":
        return "elo_celo2" if {"elo", "celo2"} <= words else "celo2"
    found = words & set(_FACTORIES[network])
    if len(found) == 1:
        return found.pop()
    known = " or ".join(map(repr, _FACTORIES[network]))
    raise ValueError(
        f"{path} fits several optimizers: name one, `l2o.load(path, optimizer=...)` "
        f"with {known}"
    )


def _words(path: Path) -> list[set[str]]:
    """The words in the names of a folder, or of a file and its folder.

    In a hub's cache those of the repository too. What lies further up, such as a home
    directory, says nothing about the weights.
    """
    path = path.absolute()
    names = [path.name] if path.is_dir() else [path.stem, path.parent.name]
    cached = [part for part in path.parts if part.startswith("models--")]
    names += [part.rsplit("--", 1)[-1] for part in cached[-1:]]
    return [set(re.split(r"[^a-z0-9]+", name.lower())) for name in names]


def _safetensors(folder: Path) -> dict[str, np.ndarray]:
    return read_safetensors(folder / _PYLO_WEIGHTS)


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / _PYLO_CONFIG)
    return config if isinstance(config, dict) else {}


def _pylo_config(network, optimizer, arrays):
    if network == "MetaMLP":
        return {
            "input_size": arrays["network.input.weight"].shape[1],
            "hidden_size": arrays["network.input.weight"].shape[0],
            "hidden_layers": sum("linear_" in key for key in arrays) // 2,
        }
    if network == "CELO2MLP":
        return {
            "feature_dims": [len(x) for k, x in arrays.items() if k.startswith("w0.")],
            "hidden_size": arrays["b0"].shape[0],
            "hidden_layers": sum(key.startswith("dense_w") for key in arrays),
            "activation": optimizer.arguments["activation"],
        }
    if network == "VeLORNN":
        return {
            "input_size": arrays["mix_layer1.weight"].shape[1],
            "lstm_hidden_size": arrays["mix_layer1.weight"].shape[0],
            "param_inits": arrays["rnn_to_controls.bias"].shape[0],
            "mix_layers": True,
        }
    return {
        "param_inits": arrays["input_bias_"].shape[0],
        "input_size": arrays["input_weights_"].shape[-1],
        "hidden_size": arrays["input_bias_"].shape[1],
        "hidden_layers": sum(key.startswith("hidden_weights_.") for key in arrays),
        "output_size": arrays["output_bias_"].shape[1],
    }
