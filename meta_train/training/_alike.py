"""Whether all processes of a distributed run were started alike."""

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import l2o
from l2o import tasks
from l2o.tasks import TaskFamily

from .._config import Config
from .._mesh import Topology
from .._processes import gathered_texts
from ..files._lock import Lock, shows

_VERSIONS = ("l2o", "jax", "jaxlib")
# Settings of JAX that change numbers, or programs and with them what is exchanged.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
# Of a topology these are one process's own.
_OWN = ("process", "coordinator")
_SHOWN = 80  # characters of a value
_SECONDS = 10.0  # until a file of another machine must have appeared


def check_start(config: Config, topology: Topology, override: bool) -> None:
    """Raises `ValueError` in all processes where options or code differ between them.

    To be called before anything that depends on them: with other options, processes
    would wait for each other at different places.
    """
    if jax.process_count() == 1:
        return
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:  # which would stop the exchange of anything
        told = ", ".join(f"{n} in process {i}" for i, n in sorted(counts.items()))
        raise ValueError(
            f"every process needs the same number of devices, not {told}: start all "
            "processes again with as many devices each"
        )
    options = {
        **dataclasses.asdict(config),
        **dataclasses.asdict(topology),
        "override": override,
    }
    _check(
        {
            **{name: options[name] for name in options if name not in _OWN},
            **{f"version of {name}": version(name) for name in _VERSIONS},
            "source files of l2o": _sources(),
            **{name: getattr(jax.config, name) for name in _SETTINGS},
        }
    )


def check_data(
    content: Mapping[str, Any], families: Sequence[TaskFamily], start: Any
) -> None:
    """As `check_start`, where data, tasks or the weights started from differ.

    Args:
      content: of `config.json`.
      families: whose data are compared.
      start: theta that the run goes on from, None for a new one.
    """
    if jax.process_count() == 1:
        return
    data = {f"data of {f.name or i}": _digest(f.data) for i, f in enumerate(families)}
    _check({**content, **data, "weights to start from": _digest(start)})


def check_folder(path: Path, lock: Lock | None) -> None:
    """As `check_start`, where processes do not see the lock that process 0 holds.

    Args:
      path: of the lock, in the run's folder.
      lock: in process 0.
    """
    if jax.process_count() == 1:
        return
    mark = gathered_texts("" if lock is None else lock.mark)[0]
    end = time.monotonic() + _SECONDS
    while not (seen := shows(path, mark)) and time.monotonic() < end:
        time.sleep(0.1)
    folders = gathered_texts(json.dumps([seen, str(path.parent.resolve())]))
    blind = [i for i, text in enumerate(folders) if not json.loads(text)[0]]
    if blind:
        where = [json.loads(folders[i])[1] for i in (0, blind[0])]
        raise ValueError(
            f"process 0 writes to {where[0]}, and process {blind[0]} does not see its "
            f"files in {where[1]}: start all processes with the same --out, on a file "
            "system that they share"
        )


def _check(items: Mapping[str, Any]) -> None:
    mine = {name: json.dumps(value, sort_keys=True) for name, value in items.items()}
    everyone = [json.loads(text) for text in gathered_texts(json.dumps(mine))]
    names = sorted({name for each in everyone for name in each})
    lines = [
        f"\n  {name}: {_told([each.get(name, 'absent') for each in everyone])}"
        for name in names
        if len({each.get(name) for each in everyone}) > 1
    ]
    if lines:
        raise ValueError(
            f"the processes of this run differ in{''.join(lines)}\nNothing was "
            "computed. Start all of them with the same options but for --process, the "
            "same versions and the same data"
        )


def _told(values: Sequence[str]) -> str:
    """Every value, and which processes have it."""
    owners: dict[str, list[str]] = {}
    for i, value in enumerate(values):
        owners.setdefault(value, []).append(str(i))
    return "; ".join(
        f"{value[:_SHOWN]} in process {', '.join(some)}"
        for value, some in owners.items()
    )


def _sources() -> str:
    """Of all Python files of the package, in whatever way it is installed."""
    # In a checkout these are three folders, in a wheel two of them lie in the first.
    roots = {
        "": Path(l2o.__path__[0]),
        "tasks/": Path(tasks.__path__[0]),
        "meta_train/": Path(__file__).parents[1],
    }
    files = {
        f"{prefix}{path.relative_to(root).as_posix()}": path.read_bytes()
        for prefix, root in roots.items()
        for path in root.rglob("*.py")
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode() + files[name])
    return digest.hexdigest()[:16]


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        )
        x = np.ascontiguousarray(jax.random.key_data(leaf) if key else leaf)
        digest.update(f"{x.dtype} {x.shape}\n".encode())
        digest.update(x.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
