"""A frozen learned optimizer on disk: `model.safetensors` + `config.json`."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import safetensors.numpy

from .._arguments import check_num_steps
from .._base import LearnedOptimizer, Theta
from .._registry import is_known as is_architecture
from .._registry import make, present_arguments, present_names
from ..names import (
    check_known,
    expanded,
    is_hub_id,
    is_path,
    present_name,
    unknown_name,
)
from ._foreign import is_foreign, load_foreign, other_half, save_pylo
from ._hub import IMPORTABLE, hub_folder, is_known
from ._reading import read_json, read_safetensors, reading
from ._recorded import check_recorded, extent, holder_of, with_changes
from ._writing import json_text, write_whole

FORMAT_VERSION = 1
_WEIGHTS = "model.safetensors"
_CARD = "config.json"
# Names that shipped optimizers had: as if the authors of Celo2 had made them.
_RENAMED = {
    "celo2_mixed": "normalized_mixed",
    "celo2_orthogonal": "normalized_orthogonal",
}
_KINDS = {str: "text", int: "whole number", dict: "map"}


def save(
    folder: str | os.PathLike,
    optimizer: LearnedOptimizer,
    theta: Theta,
    *,
    card: Mapping[str, Any] | None = None,
    format: Literal["l2o", "pylo"] = "l2o",
) -> Path:
    """Writes a frozen learned optimizer to a folder.

    `model.safetensors` holds the arrays of theta, tree keys joined by `/`;
    `config.json` the format version, the factory's name and arguments, the SHA-256 of
    the weights and your `card`. Existing files are replaced atomically, weights first.

    Args:
      folder: created where it does not exist.
      optimizer: from an `l2o` factory, or your own (then give it to `load` as well).
      theta: its meta-parameters.
      card: how it was trained; JSON-representable.
      format: "pylo" writes what PyLO's `from_pretrained` reads instead, for its classes
        (elo, mulo, small_fc, celo2, celo2_base, elo_celo2, velo); a card has no place
        there.

    Returns:
      The folder.

    Raises:
      ValueError: theta is not a theta of this optimizer, is not finite, or is of a type
        that cannot be loaded again; PyLO has no such class.

    Example:
      >>> import l2o, jax, tempfile
      >>> optimizer = l2o.small_fc()
      >>> folder = l2o.save(tempfile.mkdtemp(), optimizer,
      ...                   optimizer.init_theta(jax.random.key(0)))
      >>> tx = l2o.load(folder)
    """
    folder = expanded(folder)
    arrays = _named_arrays(theta)
    tree = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    _check_tree(arrays, tree, optimizer, "theta")
    bad = [name for name, x in arrays.items() if not np.all(np.isfinite(x))]
    if bad:
        raise ValueError(f"theta is not finite in {', '.join(bad)}; it was not saved")
    foreign = [name for name, x in arrays.items() if x.dtype.kind not in "biuf"]
    if foreign:
        raise ValueError(
            f"{', '.join(foreign)} of theta has a type that NumPy lacks, such as "
            "bfloat16, and could not be loaded again: cast it to float32"
        )
    if format == "pylo":
        return save_pylo(folder, optimizer, theta)
    check_known("format", format, ("l2o", "pylo"))
    if not _is_json(optimizer.arguments):
        raise ValueError(
            f"the arguments of {optimizer.name} cannot be written as JSON: "
            "give the optimizer without its name, `optimizer._replace(name='')`"
        )
    weights = safetensors.numpy.save(arrays)
    content = {
        "format": "l2o",
        "format_version": FORMAT_VERSION,
        "optimizer": {
            "name": optimizer.name,
            "arguments": dict(optimizer.arguments),
        },
        "weights": {"file": _WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
        "meta_parameters": int(sum(x.size for x in arrays.values())),
        "l2o_version": metadata.version("l2o"),
        "card": dict(card or {}),
    }
    card_text = json_text(content)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _WEIGHTS, weights)
    write_whole(folder / _CARD, card_text)
    return folder


def load(
    source: str | os.PathLike,
    *,
    num_steps: int | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: float | None = None,
    optimizer: LearnedOptimizer | str | None = None,
    download: bool = False,
    **arguments: Any,
) -> optax.GradientTransformationExtraArgs:
    """A frozen learned optimizer as an optax transformation.

    `optax.inject_hyperparams(l2o.load)(source, learning_rate=...)` makes the learning
    rate, the weight decay and the length of the run part of the state.

    Args:
      source: the name of a shipped optimizer (`l2o.available()`); the path of a folder
        written by `save` or of published weights (a `theta.state` or `params` file of
        Celo or google/learned_optimization or the folder with it, a folder of PyLO's);
        or `owner/name[@revision]` on a model hub (needs `l2o[hub]`). A bare word is a
        name: write `./NAME` for a folder in the current one.
      num_steps: length of the training run, for optimizers that have a horizon.
        Others ignore it.
      learning_rate: in place of the one that the source has; a number, or an optax
        schedule for optimizers without one of their own.
      weight_decay: in place of the one that the source has; zero turns it off.
      optimizer: the architecture, for one of your own that no `l2o` factory makes; or a
        factory's name, for weights that fit several. Code is never loaded from a file.
      download: whether a hub's files that are not in the local cache are fetched.
      **arguments: of the factory, over those that the source has; of a wrapper also
        those of what it wraps. One that says where meta-training starts, such as `b1`
        of `learnable_muon`, sets that number of theta.

    Raises:
      FileNotFoundError: no such folder, name or file.
      ValueError: the card is not readable, of a newer format, or names an unknown
        architecture; the weights are corrupted, truncated, not finite, would need code
        to be read or do not fit it; `owner/name` is a path and a repository;
        `num_steps` is missing; an argument that this optimizer does not have, that is
        out of range, or that would replace trained weights.

    Example:
      >>> import l2o
      >>> tx = l2o.load("small_fc_digits")  # doctest: +SKIP
    """
    if arguments.keys() == {"arguments"}:
        # `optax.inject_hyperparams` hands on a function's `**arguments` by that name.
        arguments = dict(arguments["arguments"])
    if num_steps is not None:
        check_num_steps("l2o.load", num_steps)
    given = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    optimizer, theta = load_unbound(
        source,
        optimizer=optimizer,
        download=download,
        **{name: x for name, x in given.items() if x is not None},
        **arguments,
    )
    return optimizer.bind(theta, num_steps=num_steps)


def load_unbound(
    source: str | os.PathLike,
    *,
    optimizer: LearnedOptimizer | str | None = None,
    download: bool = False,
    **arguments: Any,
) -> tuple[LearnedOptimizer, Theta]:
    """Like `load`, but returns the unbound optimizer and theta.

    For meta-training on from a saved theta, to wrap, or to bind inside a jitted
    function.
    """
    folder, repository = _located(source, download=download)
    given = dict(arguments)
    own = isinstance(optimizer, LearnedOptimizer)
    if own and arguments:
        raise ValueError(
            f"{', '.join(arguments)}: give arguments to your optimizer, not to load"
        )
    if is_foreign(folder):
        if isinstance(optimizer, LearnedOptimizer):
            if not optimizer.name:
                raise ValueError(
                    f"{folder} holds weights that only l2o's factories read: name one, "
                    "`l2o.load(path, optimizer='celo')`"
                )
            arguments = dict(optimizer.arguments)
            optimizer = optimizer.name
        beside = None
        if repository is not None:
            listed = repository.partition("@")[0]
            if listed in IMPORTABLE:
                known, told = IMPORTABLE[listed]
                optimizer = optimizer or known
                arguments = {**told, **arguments} if optimizer == known else arguments
            half = other_half(repository)
            if half is not None:
                beside = functools.partial(hub_folder, half, download=download)
        optimizer, theta = load_foreign(folder, optimizer, arguments, beside)
        return optimizer, _started(optimizer, theta, given, {})
    card = read_card(folder)
    path = folder / _WEIGHTS
    weights = _read(path)
    if hashlib.sha256(weights).hexdigest() != card["weights"]["sha256"]:
        raise ValueError(
            f"{path} does not match the checksum in {_CARD}: the file is "
            "corrupted or belongs to another card; copy the folder again"
        )
    arrays = read_safetensors(path, weights)
    if not isinstance(optimizer, LearnedOptimizer):
        optimizer = _recorded(folder, card, optimizer, arguments, arrays)
    if optimizer.name == card["optimizer"]["name"]:
        arrays |= _since(optimizer, card["optimizer"]["arguments"], arrays)
    expected = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    _check_tree(arrays, expected, optimizer, str(path))
    leaves = [jax.numpy.asarray(arrays[name]) for name in _named_leaves(expected)]
    theta = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    return optimizer, _started(optimizer, theta, given, card["optimizer"]["arguments"])


def _since(
    optimizer: LearnedOptimizer,
    recorded: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Numbers of theta that there were not yet when a folder was written.

    They come with an argument, which the folder does not record either; so they are
    what its absence means.
    """
    missing = {
        leaf
        for name, leaves in optimizer.starts.items()
        if holder_of(dict(recorded), name) is None
        for leaf in leaves
        if leaf not in arrays
    }
    if not missing:
        return {}
    fresh = _named_leaves(optimizer.init_theta(jax.random.key(0)))
    return {k: np.asarray(x) for k, x in fresh.items() if k in missing and x.ndim == 0}


def _started(
    optimizer: LearnedOptimizer,
    theta: Theta,
    arguments: Mapping[str, Any],
    recorded: Mapping[str, Any],
) -> Theta:
    """Theta, with the numbers at which these arguments let meta-training start.

    Args:
      recorded: arguments of the optimizer that theta was trained as.

    Raises:
      ValueError: an argument is about trained weights.
    """
    names = {leaf for name in arguments for leaf in optimizer.starts.get(name, ())}
    if not names:
        return theta
    fresh = _named_leaves(optimizer.init_theta(jax.random.key(0)))
    for name in arguments:
        leaves = optimizer.starts.get(name, ())
        if all(leaf in fresh and np.ndim(fresh[leaf]) == 0 for leaf in leaves):
            continue
        known = holder_of(dict(recorded), name)
        if known is None or known[name] != arguments[name]:
            raise ValueError(
                f"{name} is what meta-training of {optimizer.name} starts from: it "
                f"would replace the trained weights {', '.join(leaves)} of theta. "
                f"Leave it out, or meta-train with {name}={arguments[name]!r}"
            )
    chosen = {k: fresh[k] if k in names else x for k, x in _named_leaves(theta).items()}
    return jax.tree.unflatten(jax.tree.structure(theta), list(chosen.values()))


def _recorded(
    folder: Path,
    card: Mapping[str, Any],
    name: str | None,
    arguments: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> LearnedOptimizer:
    """The optimizer of a card, with the user's arguments over those recorded."""
    name = name or card["optimizer"]["name"]
    if not name:
        raise ValueError(
            f"{folder} holds an optimizer that no l2o factory makes: give its "
            "architecture, `l2o.load(folder, optimizer=my_optimizer)`"
        )
    with reading(folder / _CARD, f"arguments of {name}"):
        recorded = present_arguments(name, card["optimizer"]["arguments"])
        check_recorded(name, recorded, extent([x.shape for x in arrays.values()]))
        optimizer = make(name, **recorded)
        jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    if not arguments:
        return optimizer
    return make(name, **with_changes(recorded, present_names(name, arguments)))


def read_card(source: str | os.PathLike) -> dict[str, Any]:
    """The content of a folder's `config.json`, checked for format and version.

    Args:
      source: as `load` takes it.

    Raises:
      FileNotFoundError: no such folder or name, or a folder without a card.
      ValueError: the card is not readable or of a newer format.

    Example:
      >>> import l2o
      >>> l2o.read_card("small_fc_digits")["optimizer"]["name"]
      'small_fc'
    """
    path = _located(source)[0] / _CARD
    _exists(path)
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != "l2o":
        raise ValueError(f'{path} is not an l2o card: it lacks "format": "l2o"')
    version = card.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r:.40}, this l2o reads up to "
            f"{FORMAT_VERSION}: upgrade l2o"
        )
    for names, kind in (
        (("weights", "sha256"), str),
        (("optimizer", "name"), str),
        (("optimizer", "arguments"), dict),
        (("meta_parameters",), int),
        (("card",), dict),
    ):
        value: Any = card
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise ValueError(
                f"{path} lacks {'.'.join(names)}, or holds something else there than "
                f"a {_KINDS[kind]}: write it again with `l2o.save`"
            )
    return card


def shipped() -> list[str]:
    """Names of the pretrained optimizers that come with the package.

    Example:
      >>> import l2o
      >>> "adaptive_muon" in l2o.shipped()
      True
    """
    root = resources.files("l2o.checkpoints")
    return sorted(p.name for p in root.iterdir() if p.joinpath(_CARD).is_file())


def is_shipped(name: str) -> bool:
    """Whether a pretrained optimizer that comes with l2o has or had this name."""
    return name in _RENAMED or name in shipped()


def _located(
    source: str | os.PathLike, *, download: bool = False
) -> tuple[Path, str | None]:
    """The folder or file that a user means, and the hub's repository if it is of one.

    What lies in the current folder counts only where the text is spelled as a path.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"{source!r} names no weights: give the name of a shipped optimizer, a "
            "path or an `owner/name` of a model hub"
        )
    if is_path(source):
        path = expanded(source)
        if not path.exists():
            raise FileNotFoundError(
                f"{str(source)!r} is neither a file nor a folder: give what `l2o.save` "
                "wrote, or the name of a shipped optimizer (`l2o.shipped()`)"
            )
        return path, None
    name = present_name("shipped optimizer", str(source), _RENAMED)
    if name in (names := shipped()):
        with resources.as_file(resources.files("l2o.checkpoints") / name) as folder:
            return Path(folder), None
    if is_architecture(name):
        raise FileNotFoundError(
            f"{name!r} is an architecture: `l2o.make({name!r})` makes it, without "
            "weights. Published weights lie in files of their authors, `l2o list "
            "published` names some; shipped ones are `l2o.shipped()`"
        )
    if not is_hub_id(name):
        raise FileNotFoundError(
            unknown_name("optimizer", name, names, paths="a file or folder of weights")
        )
    if not Path(name).exists():
        return hub_folder(name, download=download), name
    if download or is_known(name):
        raise ValueError(
            f"{name!r} is a path here and a repository of the model hub: write "
            f"./{name} for the path, or {name.partition('@')[0]}@REVISION, such as "
            "@main, for the repository"
        )
    return Path(name), None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _read(path: Path) -> bytes:
    _exists(path)
    return path.read_bytes()


def _exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: a frozen optimizer is a folder with {_WEIGHTS} and "
            f"{_CARD}"
        )


def _named_leaves(tree: Any) -> dict[str, Any]:
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if any("/" in key for key in keys):
            raise ValueError(f"a key of theta contains a slash: {keys}")
        named["/".join(keys)] = leaf
    return named


def _named_arrays(theta: Theta) -> dict[str, np.ndarray]:
    return {
        name: np.ascontiguousarray(x) if np.ndim(x) else np.asarray(x)
        for name, x in _named_leaves(theta).items()
    }


def _check_tree(
    arrays: Mapping[str, np.ndarray], tree: Any, optimizer: LearnedOptimizer, what: str
) -> None:
    expected = _named_leaves(tree)
    problems = [f"lacks {name}" for name in expected if name not in arrays]
    problems += [f"has unknown {name}" for name in arrays if name not in expected]
    for name, leaf in expected.items():
        if name in arrays:
            found = arrays[name].shape, str(arrays[name].dtype)
            wanted = leaf.shape, str(leaf.dtype)
            if found != wanted:
                problems.append(f"{name} is {found}, expected {wanted}")
    if problems:
        raise ValueError(
            f"{what} does not fit {optimizer.name or 'this optimizer'}"
            f"({dict(optimizer.arguments)}): {'; '.join(problems[:5])}"
        )
