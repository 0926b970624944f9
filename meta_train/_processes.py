"""The processes of a distributed run: what they agree on, and when one is lost."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._mesh import Topology

T = TypeVar("T")
_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead


def initialize(topology: Topology) -> None:
    """Joins the other processes, if there are any; before anything else of JAX.

    Raises:
      ValueError: no environment says who the others are.
      RuntimeError: they could not be reached.
    """
    if not topology.distributed or jax.distributed.is_initialized():
        return
    # Without it a CPU process sees no other; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        topology.coordinator,
        topology.processes,
        topology.process,
        # Long enough for a garbage collection, short enough to notice a dead one.
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=60,
    )


def gathered(tree: Any) -> Any:
    """The tree with all arrays in full, in all processes."""
    leaves = jax.tree.leaves(tree)
    if all(x.is_fully_addressable or x.is_fully_replicated for x in leaves):
        return tree
    with processes_may_be_lost():
        return jax.tree.map(
            lambda x: multihost_utils.process_allgather(x, tiled=True), tree
        )


def is_main() -> bool:
    """Whether this process is the one that writes what all share."""
    return jax.process_index() == 0


def by_main(action: Callable[[], T]) -> T:
    """Does something in process 0, where all must come by; its result, None elsewhere.

    Raises:
      ValueError: in the others, where it failed; process 0 raises what it was.
    """
    return together(lambda: action() if is_main() else None)  # type: ignore[return-value]


def together(action: Callable[[], T]) -> T:
    """Does something in every process, and goes on only where none has failed.

    Raises:
      ValueError: where it failed in others alone; these raise what it was.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    failed = [i for i, good in enumerate(_everyones(failure is None)) if not good]
    if failure is not None:
        raise failure
    if failed:
        raise ValueError(f"process {failed[0]} could not go on; its message tells why")
    return result  # type: ignore[return-value]


def all_agree(condition: bool) -> bool:
    """Whether it holds in every process; waits for all."""
    return bool(np.all(_everyones(condition)))


def gathered_texts(text: str) -> list[str]:
    """What each process has given, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = _everyones(np.int32(data.size))
    rows = _everyones(np.pad(data, (0, max(sizes) - data.size)))
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def _everyones(x: Any) -> np.ndarray:
    """The arrays or scalars of all processes, of one shape, along a new first axis."""
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    with processes_may_be_lost():
        return np.asarray(multihost_utils.process_allgather(np.asarray(x)))


class ProcessLost(RuntimeError):
    """Another process of a distributed run is gone; what it computed cannot go on.

    Leave the interpreter with `os._exit`: an ordinary end waits for the others.
    """


_REMEDY = "Start all processes again: the run resumes from its last checkpoint"


@contextlib.contextmanager
def processes_may_be_lost() -> Iterator[None]:
    """Around what needs the other processes: their loss is a `ProcessLost`.

    Where the backend does not notice, JAX ends the process for missing heartbeats, too
    low for Python to see it: so a long wait is told on standard error.
    """
    if jax.process_count() == 1:
        yield
        return
    waiting = threading.Timer(_HEARTBEAT / 2, _tell)
    waiting.daemon = True
    waiting.start()
    try:
        yield
    except Exception as error:
        # Backends raise all sorts, with texts of their own.
        if isinstance(error, ProcessLost | OSError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ProcessLost(
            f"process {jax.process_index()} has lost the others ({reason[:200]}). "
            f"{_REMEDY}"
        ) from error
    finally:
        waiting.cancel()


@functools.cache
def _tell() -> None:
    # Once: outer steps may be as long as that.
    print(
        f"l2o: process {jax.process_index()} has been waiting for the others for "
        f"{_HEARTBEAT // 2} s. If one has died, this one ends {_HEARTBEAT} s after. "
        f"{_REMEDY}",
        file=sys.stderr,
        flush=True,
    )
