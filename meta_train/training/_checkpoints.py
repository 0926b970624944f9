"""Checkpoints of a run: every leaf of its state, saved by orbax, held to SHA-256.

A checkpoint is a folder that appears by a rename or not at all. `state` in it holds the
leaves. `record` holds what each process knows of them: counters, and the SHA-256 of
what it has written, since orbax would not notice a flipped bit.

Of orbax only the handler of trees is used. Its managers read the folder's name as a
pattern. They wait by the wall clock, which may be set at any time. They let processes
wait for one that has failed.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from l2o.files import write_whole

from .._processes import all_agree, by_main
from ..files._writing import reason, system_error, writing

_STATE, _RECORD = "state", "record"
_PARTIAL = ".partial"  # ends the name of what is being written, or deleted
# Leaves of optimizers' states that older versions lacked; they begin at zero.
_LATER = re.compile(r"\.(skipped|fall\.asked|fall\.share)$")
_POLL = 0.02  # seconds between two looks for the other processes' records

# Orbax reports every phase and every thread's traceback; errors reach us as exceptions.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
    """Writes checkpoints to a folder; saving is asynchronous and atomic.

    A state is any pytree of arrays. On disk it is flat, each leaf named by its path in
    the tree, so that restoring does not depend on classes.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int | None = None,
        last: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Keeps the last `keep`, and those of every `keep_every`-th step for ever.

        Args:
          folder: for the checkpoints.
          keep: how many of the last ones.
          keep_every: None keeps no others.
          last: the step that is there already and need not be saved again.
          check: called before every save in process 0; raises an `OSError` where the
            folder is no longer this run's.
        """
        self._folder = folder
        self._keep, self._keep_every = keep, keep_every
        self._last, self._check = last, check
        self._jobs: list[Future[None]] = []
        self._given_up = threading.Event()
        self._thread = ThreadPoolExecutor(1, "checkpoints")

    def save(self, step: int, state: Any, counters: dict[str, float]) -> None:
        """Saves in the background, after waiting for the save before.

        Raises:
          OSError: this or the last checkpoint could not be written; the message names
            its step and the last good one.
        """
        self.wait()
        if step == self._last:
            return
        self._last = step
        flat = _flatten(state)
        for x in filter(_whole, flat.values()):
            x.copy_to_host_async()  # all at once, from accelerators
        # The outer step takes the memory of its arguments. Orbax writes arrays that are
        # spread over processes from devices alone.
        leaves = {
            name: np.array(x) if _whole(x) else jnp.copy(x) for name, x in flat.items()
        }
        # Two jobs: a process whose own part failed must not wait for the others'.
        self._jobs = [
            self._thread.submit(self._write, step, leaves, counters),
            self._thread.submit(self._commit, step),
        ]

    def wait(self) -> None:
        """Returns when the last save is on disk; raises as `save` does."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            error = job.exception()
            good = all_agree(error is None)
            if not good:
                self._given_up.set()
            if error is not None and not isinstance(error, OSError):
                raise error
            if not good:
                why = "see the other process's message" if error is None else None
                raise self._failed(why or reason(error)) from error  # type: ignore[arg-type]

    def close(self) -> None:
        """Waits, then releases the thread; `wait` has told what failed."""
        if jax.process_count() > 1:
            self._given_up.set()  # after an error the others may never come
        self._thread.shutdown()

    def _failed(self, why: str) -> OSError:
        # It takes room that the user may be looking for.
        shutil.rmtree(self._partial(self._last), ignore_errors=True)
        good = max(steps(self._folder), default="none")
        return OSError(
            f"checkpoint {self._last} in {self._folder} could not be written; the last "
            f"good one is {good}: {why}"
        )

    def _partial(self, step: int | None) -> Path:
        return self._folder / f"{step}{_PARTIAL}"

    def _write(
        self, step: int, leaves: dict[str, Any], counters: dict[str, float]
    ) -> None:
        """This process's part; its record comes last and says that it is whole."""
        partial, number = self._partial(step), jax.process_index()
        if number == 0:
            self._check()
        # Without its parents: of a run's folder that was moved, no second one appears.
        self._folder.mkdir(exist_ok=True)
        for path in (partial, partial / _STATE, partial / _RECORD):
            path.mkdir(exist_ok=True)
        with _orbax(OSError("the arrays could not be written")) as handler:
            path = epath.Path((partial / _STATE).absolute())
            handler.save(path, args=ocp.args.PyTreeSave(leaves))
        record = {
            "step": step,
            "processes": jax.process_count(),
            "counters": counters,
            "leaves": {n: _sha256(x) if _whole(x) else None for n, x in leaves.items()},
            "pieces": {n: _pieces(x) for n, x in leaves.items() if not _whole(x)},
        }
        sealed = json.dumps({**record, "digest": _digest(record)})
        write_whole(_record_path(partial, number), sealed)

    def _commit(self, step: int) -> None:
        """In process 0, when all parts are there: the rename; then the old ones go."""
        partial = self._partial(step)
        parts = [_record_path(partial, i) for i in range(jax.process_count())]
        if jax.process_index() or not parts[0].exists():
            return
        while not all(part.exists() for part in parts):
            if self._given_up.wait(_POLL):
                return
        with _orbax(OSError("the arrays could not be written")) as handler:
            # As a path of Python's: its own would take the folder's name as a pattern.
            handler.finalize((partial / _STATE).absolute())
        for path in (*partial.rglob("*"), partial):
            _to_disk(path)
        partial.replace(self._folder / str(step))
        _to_disk(self._folder)
        for old in steps(self._folder)[: -self._keep]:
            if self._keep_every is None or old % self._keep_every:
                # First out of the readers' sight: half of one would look damaged.
                gone = (self._folder / str(old)).replace(self._partial(old))
                shutil.rmtree(gone, ignore_errors=True)


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
      OSError: files are gone or cannot be read.
    """
    path = folder / str(step)
    records = [_read_record(path, 0, step)]
    # Without the number of processes: of a version that kept no records of the others.
    others = range(1, records[0].get("processes", 1))
    records += [_read_record(path, i, step) for i in others]
    leaves = records[0]["leaves"]
    every = _flatten(like)
    later = {k: x for k, x in every.items() if k not in leaves and _LATER.search(k)}
    expected = {k: x for k, x in every.items() if k not in later}
    differ = sorted(expected.keys() - leaves if part else expected.keys() ^ leaves)
    flat = {} if differ else _read_leaves(path / _STATE, list(expected))
    differ += sorted(
        name
        for name, x in flat.items()
        if (x.dtype, x.shape) != (expected[name].dtype, expected[name].shape)
    )
    if differ:
        raise ValueError(
            "it was written by another version or configuration (differs in "
            f"{', '.join(differ[:3])})"
        )
    for name, x in flat.items():
        known = [(x, leaves[name])] if leaves[name] is not None else []
        for record in records:
            for start, shape, sha256 in record.get("pieces", {}).get(name, []):
                place = zip(start, shape, strict=True)
                known.append((x[tuple(slice(i, i + n) for i, n in place)], sha256))
        if any(_sha256(piece) != sha256 for piece, sha256 in known):
            raise ValueError(f"{name} does not match its checksum")
    flat |= {k: np.zeros(x.shape, x.dtype) for k, x in later.items()}
    return _unflatten(flat, like), dict(records[0]["counters"])


def attempt(
    folder: Path, step: int, like: Any, *, part: bool = False
) -> tuple[Any, dict[str, float]] | str:
    """As `read`, or in words why that failed."""
    try:
        return read(folder, step, like, part=part)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        return f"{name}: {error.strerror or error}"
    except ValueError as error:
        return str(error)


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
        reasons = "".join(f"\n  {step}: {why}" for step, why in bad.items())
        raise ValueError(
            f"no checkpoint in {folder} can be read:{reasons}\nNothing was deleted: "
            "put back a copy of one of them, or start in another folder"
        )
    return None


def _clear(folder: Path) -> None:
    """Removes what interrupted saves have left."""
    for path in folder.glob("*"):
        # The second: of versions that left the renaming to orbax.
        if path.name.endswith(_PARTIAL) or ocp.utils.TMP_DIR_SUFFIX in path.name:
            with writing(path):
                shutil.rmtree(path)


def _move(
    folder: Path,
    aside: Path,
    bad: dict[int, str],
    used: int,
    report: Callable[[str], None],
) -> None:
    for number, why in bad.items():
        with writing(aside):
            aside.mkdir(exist_ok=True)
            taken = len(list(aside.glob(f"{number}*")))
            target = aside / (f"{number}-{taken}" if taken else str(number))
            (folder / str(number)).rename(target)
        report(
            f"checkpoint {number} cannot be read ({why}): moved to {target}, "
            f"using checkpoint {used} instead"
        )


def state_bytes(state: Any) -> int:
    """Bytes of all leaves."""
    return sum(np.dtype(x.dtype).itemsize * x.size for x in _flatten(state).values())


@contextlib.contextmanager
def _orbax(failure: Exception) -> Iterator[ocp.PyTreeCheckpointHandler]:
    """Its handler; what it raises becomes an error of the system or `failure`."""
    _silence_late_answers()
    try:
        # Each process counts as the primary one, or the others would wait for it.
        options = ocp.options.MultiprocessingOptions(primary_host=jax.process_index())
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
        with contextlib.closing(handler):
            yield handler
    except MemoryError:
        raise
    except Exception as error:
        raise (system_error(error) or failure) from error


def _silence_late_answers() -> None:
    """Drops what Python tells of reads and writes that end after a failed one.

    Orbax closes its event loop at the first failure, while others are under way.
    """
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "_but_late_answers":
        return

    def _but_late_answers(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    sys.unraisablehook = _but_late_answers


def _read_leaves(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    with _orbax(ValueError("files of the arrays are damaged or gone")) as handler:
        return handler.restore(
            epath.Path(path.absolute()),
            args=ocp.args.PyTreeRestore(
                item=dict.fromkeys(names, 0),
                restore_args=dict.fromkeys(names, ocp.RestoreArgs(np.ndarray)),
                partial_restore=True,
            ),
        )


def _record_path(path: Path, process: int) -> Path:
    return path / _RECORD / (f"process_{process}" if process else "metadata")


def _read_record(path: Path, process: int, step: int) -> dict[str, Any]:
    file = _record_path(path, process)
    name = f"{_RECORD}/{file.name}"
    try:
        record = json.loads(file.read_bytes())
        digest, told = _digest(record), record["digest"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{name} is damaged") from None
    if digest != told or record["step"] != step:
        raise ValueError(f"{name} does not match its checksum")
    return record


def _digest(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _whole(x: Any) -> bool:
    """Whether this process has all of it."""
    is_array = isinstance(x, jax.Array)
    return not is_array or x.is_fully_addressable or x.is_fully_replicated


def _pieces(x: jax.Array) -> list[tuple[list[int], tuple[int, ...], str]]:
    """Start, shape and SHA-256 of those that this process writes."""
    return [
        ([s.start or 0 for s in shard.index], shard.data.shape, _sha256(shard.data))
        for shard in x.addressable_shards
        if shard.replica_id == 0
    ]


def _sha256(x: Any) -> str:
    flat = np.ascontiguousarray(x).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def _to_disk(path: Path) -> None:
    # Some systems and file systems know no such thing, least of all for folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flatten(state: Any) -> dict[str, Any]:
    """Leaves by name, but for empty arrays, which orbax does not save."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _raw(leaf)
        for path, leaf in leaves
        if leaf.size
    }


def _unflatten(flat: dict[str, np.ndarray], like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    names = iter(_flatten(like))
    restored = []
    for leaf in leaves:
        x = flat[next(names)] if leaf.size else np.zeros(leaf.shape, leaf.dtype)
        restored.append(_placed(x, leaf) if isinstance(leaf, jax.Array) else x)
    return jax.tree.unflatten(structure, restored)


def _placed(x: np.ndarray, like: jax.Array) -> jax.Array:
    if _is_key(like):
        raw = _placed(x, jax.random.key_data(like))
        return jax.random.wrap_key_data(raw, impl=jax.random.key_impl(like))
    # A committed array makes another program of the outer step than one that is not.
    if not like.committed:
        return jnp.array(x)
    return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x
