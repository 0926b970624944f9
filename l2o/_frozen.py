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
import safetensors
import safetensors.numpy

from ._arguments import check_num_steps
from ._base import LearnedOptimizer, Theta
from ._foreign import is_foreign, load_foreign, other_half, save_pylo
from ._hub import IMPORTABLE, hub_folder, is_hub_id
from ._registry import changed, make, recorder

FORMAT_VERSION = 1
_WEIGHTS = "model.safetensors"
_CARD = "config.json"


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
    folder = Path(folder)
    arrays = _named_arrays(theta)
    _check_tree(arrays, optimizer, "theta")
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
    if format != "l2o":
        raise ValueError(f"unknown format {format!r}; known: l2o, pylo")
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
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / _WEIGHTS, weights)
    _replace(folder / _CARD, text.encode())
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
      source: the name of a shipped optimizer (`l2o.available()`), a folder written by
        `save`, published weights (a `theta.state` or `params` file of Celo or
        google/learned_optimization or the folder with it, a folder of PyLO's), or
        `owner/name[@revision]` on a model hub (needs `l2o[hub]`).
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
        architecture; the weights are corrupted, truncated, would need code to be read
        or do not fit it; `num_steps` is missing; an argument that this optimizer does
        not have, that is out of range, or that would replace trained weights.

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
    optimizer, theta = load_theta(
        source,
        optimizer=optimizer,
        download=download,
        **{name: x for name, x in given.items() if x is not None},
        **arguments,
    )
    return optimizer.bind(theta, num_steps=num_steps)


def load_theta(
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
    folder = _folder(source, download=download)
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
        repository = str(source).partition("@")[0]
        if repository in IMPORTABLE:
            known, told = IMPORTABLE[repository]
            optimizer = optimizer or known
            arguments = {**told, **arguments} if optimizer == known else arguments
        half = other_half(str(source)) if _on_hub(source) else None
        beside = functools.partial(_folder, half, download=download) if half else None
        optimizer, theta = load_foreign(folder, optimizer, arguments, beside)
        return optimizer, _started(optimizer, theta, arguments, {})
    card = read_card(folder)
    if not isinstance(optimizer, LearnedOptimizer):
        name = optimizer or card["optimizer"]["name"]
        if not name:
            raise ValueError(
                f"{folder} holds an optimizer that no l2o factory makes: give its "
                "architecture, `l2o.load(folder, optimizer=my_optimizer)`"
            )
        recorded = card["optimizer"]["arguments"]
        try:
            optimizer = make(name, **changed(recorded, arguments))
        except TypeError as error:
            raise ValueError(
                f"{folder / _CARD} has an ill-typed argument of {name}: {error}"
            ) from error
    weights = _read(folder / _WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != card["weights"]["sha256"]:
        raise ValueError(
            f"{folder / _WEIGHTS} does not match the checksum in {_CARD}: the file is "
            "corrupted or belongs to another card; copy the folder again"
        )
    try:
        arrays = safetensors.numpy.load(weights)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{folder / _WEIGHTS} is not a safetensors file: {error}"
        ) from error
    _check_tree(arrays, optimizer, str(folder / _WEIGHTS))
    expected = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    leaves = [jax.numpy.asarray(arrays[name]) for name in _named_leaves(expected)]
    theta = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    return optimizer, _started(
        optimizer, theta, arguments, card["optimizer"]["arguments"]
    )


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
        known = recorder(dict(recorded), name)
        if known is None or known[name] != arguments[name]:
            raise ValueError(
                f"{name} is what meta-training of {optimizer.name} starts from: it "
                f"would replace the trained weights {', '.join(leaves)} of theta. "
                f"Leave it out, or meta-train with {name}={arguments[name]!r}"
            )
    chosen = {k: fresh[k] if k in names else x for k, x in _named_leaves(theta).items()}
    return jax.tree.unflatten(jax.tree.structure(theta), list(chosen.values()))


def read_card(source: str | os.PathLike) -> dict[str, Any]:
    """The content of a folder's `config.json`, checked for format and version."""
    path = _folder(source) / _CARD
    try:
        card = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != "l2o":
        raise ValueError(f'{path} is not an l2o card: it lacks "format": "l2o"')
    version = card.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}, this l2o reads up to "
            f"{FORMAT_VERSION}: upgrade l2o"
        )
    try:
        str(card["weights"]["sha256"])
        str(card["optimizer"]["name"])
        dict(card["optimizer"]["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} lacks weights.sha256, optimizer.name or optimizer.arguments"
        ) from error
    return card


def shipped() -> list[str]:
    """Names of the pretrained optimizers that come with the package."""
    root = resources.files("l2o.checkpoints")
    return sorted(p.name for p in root.iterdir() if p.joinpath(_CARD).is_file())


def _folder(source: str | os.PathLike, *, download: bool = False) -> Path:
    path = Path(source)
    if path.is_dir() or path.is_file():
        return path
    names = shipped()
    if isinstance(source, str) and source in names:
        with resources.as_file(resources.files("l2o.checkpoints") / source) as folder:
            return Path(folder)
    if _on_hub(source):
        return hub_folder(str(source), download=download)
    raise FileNotFoundError(
        f"{str(source)!r} is neither a file or folder nor a shipped optimizer; "
        f"shipped: {', '.join(names) or 'none'}"
    )


def _on_hub(source: str | os.PathLike) -> bool:
    return isinstance(source, str) and is_hub_id(source) and not Path(source).exists()


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} is missing: a frozen optimizer is a folder with {_WEIGHTS} and "
            f"{_CARD}"
        ) from None


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


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
    arrays: Mapping[str, np.ndarray], optimizer: LearnedOptimizer, what: str
) -> None:
    expected = _named_leaves(jax.eval_shape(optimizer.init_theta, jax.random.key(0)))
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
