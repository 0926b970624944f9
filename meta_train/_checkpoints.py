"""Checkpoints of a run: every leaf of its state, saved by orbax, held to SHA-256."""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from ._mesh import all_agree, by_main

# Orbax reports every phase of every save, and every thread's traceback of a failed one;
# errors still reach us as exceptions.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_STATE, _RECORD = "state", "record"


class Checkpoints:
    """Writes checkpoints to a folder; saving is asynchronous and atomic.

    A state is any pytree of arrays. On disk it is flat: one array per leaf, named by
    its path in the tree, so that restoring does not depend on classes. Beside it lie
    counters and the SHA-256 of every leaf, since orbax would not notice a flipped bit.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int | None = None) -> None:
        """Keeps the last `keep`, and those of every `keep_every`-th step for ever."""
        policies: list[PreservationPolicy] = [LatestN(keep)]
        if keep_every is not None:
            policies.append(EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies)
            ),
            item_handlers={
                _STATE: ocp.StandardCheckpointHandler(),
                _RECORD: ocp.JsonCheckpointHandler(),
            },
        )
        self._folder = folder
        self._saving: int | None = None

    def save(self, step: int, state: Any, counters: dict[str, float]) -> None:
        """Saves in the background, after waiting for the save before.

        Raises:
          OSError: this or the last checkpoint could not be written, whatever orbax
            raised; the message names its step and the last good one.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        flat = _flatten(state)
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(flat),
                        _RECORD: ocp.args.JsonSave(_record(step, flat, counters)),
                    }
                ),
            )
        except OSError as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when the last save is on disk; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, then releases the threads; `wait` has told what failed."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def _failed(self, error: Exception) -> OSError:
        good = max(set(steps(self._folder)) - {self._saving}, default="none")
        return OSError(
            f"checkpoint {self._saving} could not be written: {_short(error)}; the "
            f"last good one is {good}. Make room and run again to resume"
        )


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, whole or not, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def read(
    folder: Path, step: int, like: Any, *, part: bool = False
) -> tuple[Any, dict[str, float]]:
    """One checkpoint, as (state, counters); changes nothing on disk.

    Args:
      folder: of the checkpoints.
      step: which one.
      like: a state of the same structure, shapes and dtypes. Arrays come back placed
        and committed as these are, where these are `ShapeDtypeStruct`s as NumPy arrays.
      part: `like` may lack leaves; only those it has are read.

    Raises:
      ValueError: the state is another one, or not what was saved.
      Exception: whatever orbax raises where files are damaged or gone.
    """
    path = (folder / str(step)).resolve()
    expected = {name: _target(x) for name, x in _flatten(like).items()}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        record = reader.restore(path / _RECORD)
    if record["digest"] != _digest(record) or record["step"] != step:
        raise ValueError("its record does not match its checksum")
    leaves = record["leaves"]
    differ = sorted(expected.keys() - leaves if part else expected.keys() ^ leaves)
    if differ:
        raise ValueError(
            "it was written by another version or configuration (differs in "
            f"{', '.join(differ[:3])})"
        )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        flat = reader.restore(
            path / _STATE,
            args=ocp.args.PyTreeRestore(
                item=expected,
                restore_args=ocp.checkpoint_utils.construct_restore_args(expected),
                partial_restore=True,
            ),
        )
    for name, x in flat.items():
        if leaves[name] is not None and _whole(x) and leaves[name] != _sha256(x):
            raise ValueError(f"{name} does not match its checksum")
    return _unflatten(flat, like), dict(record["counters"])


def attempt(
    folder: Path, step: int, like: Any, *, part: bool = False
) -> tuple[Any, dict[str, float]] | str:
    """As `read`, or in words why that failed."""
    hook = sys.unraisablehook
    with warnings.catch_warnings():
        # A read that failed drops its coroutines, which Python would tell one by one.
        warnings.simplefilter("ignore", RuntimeWarning)
        sys.unraisablehook = lambda _: None
        try:
            return read(folder, step, like, part=part)
        except MemoryError:
            raise
        except Exception as error:  # orbax and tensorstore raise all sorts
            reason = _short(error)
        finally:
            gc.collect()
            sys.unraisablehook = hook
    return reason


def restore(
    folder: Path, like: Any, *, aside: Path, report: Callable[[str], None]
) -> tuple[int, Any, dict[str, float]] | None:
    """The newest checkpoint that can be read, as (step, state, counters).

    Args:
      folder: of the checkpoints; what an interrupted save left there is removed.
      like: a state of the same structure, shapes and dtypes.
      aside: where newer ones that cannot be read are moved, so that their steps can be
        saved again.
      report: called with a sentence about each of those.

    Returns:
      None where there is no checkpoint.

    Raises:
      ValueError: there are checkpoints, but none can be read; all stay in place.
    """
    by_main(lambda: _clear(folder))
    bad: dict[int, str] = {}
    for step in reversed(steps(folder)):
        found = attempt(folder, step, like)
        good = all_agree(not isinstance(found, str))
        if isinstance(found, str) or not good:
            bad[step] = found if isinstance(found, str) else "in another process"
            continue
        by_main(functools.partial(_move, folder, aside, bad, step, report))
        return step, *found
    if bad:
        reasons = "".join(f"\n  {step}: {reason}" for step, reason in bad.items())
        raise ValueError(
            f"no checkpoint in {folder} can be read:{reasons}\nNothing was deleted: "
            "put back a copy of one of them, or start in another folder"
        )
    return None


def _clear(folder: Path) -> None:
    """Removes what interrupted saves have left."""
    for path in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(path)


def _move(
    folder: Path,
    aside: Path,
    bad: dict[int, str],
    used: int,
    report: Callable[[str], None],
) -> None:
    for number, reason in bad.items():
        aside.mkdir(exist_ok=True)
        taken = len(list(aside.glob(f"{number}*")))
        target = aside / (f"{number}-{taken}" if taken else str(number))
        (folder / str(number)).rename(target)
        report(
            f"checkpoint {number} cannot be read ({reason}): moved to {target}, "
            f"using checkpoint {used} instead"
        )


def state_bytes(state: Any) -> int:
    """Bytes of all leaves."""
    return sum(np.dtype(x.dtype).itemsize * x.size for x in _flatten(state).values())


def _record(
    step: int, flat: dict[str, jax.Array], counters: dict[str, float]
) -> dict[str, Any]:
    # Of an array spread over processes none holds the whole: it goes unchecked.
    leaves = {name: _sha256(x) if _whole(x) else None for name, x in flat.items()}
    record = {"step": step, "counters": counters, "leaves": leaves}
    return {**record, "digest": _digest(record)}


def _whole(x: Any) -> bool:
    """Whether this process has all of it."""
    is_array = isinstance(x, jax.Array)
    return not is_array or x.is_fully_addressable or x.is_fully_replicated


def _digest(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(x: Any) -> str:
    flat = np.ascontiguousarray(x).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def _short(error: Exception) -> str:
    """The first line of an error's cause, cut to something a person reads."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    line = line if len(line) <= 200 else line[:200] + "..."
    told = isinstance(error, ValueError | OSError)
    return line if told else f"{type(error).__name__}: {line}"


def _flatten(state: Any) -> dict[str, Any]:
    """Leaves by name, but for empty arrays, which orbax does not save."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _raw(leaf)
        for path, leaf in leaves
        if leaf.size
    }


def _unflatten(flat: dict[str, Any], like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    names = iter(_flatten(like))
    restored = []
    for leaf in leaves:
        x = flat[next(names)] if leaf.size else np.zeros(leaf.shape, leaf.dtype)
        if isinstance(leaf, jax.Array) and isinstance(x, np.ndarray):
            x = jnp.array(x)
        if _is_key(leaf):
            x = jax.random.wrap_key_data(jnp.asarray(x))
        restored.append(x)
    return jax.tree.unflatten(structure, restored)


def _target(x: Any) -> Any:
    # Orbax commits arrays to devices, which makes another program of the outer step.
    if isinstance(x, jax.Array) and x.committed:
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x
