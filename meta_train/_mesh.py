"""One program on any mesh of devices: particles along one axis, batches along another.

Estimators are written as if there were one device. On a mesh their state lies sharded
over its "particles" axis, and the compiler partitions the program: particles share
nothing but theta and the data until their gradients are summed, so an outer step has
one all-reduce, of the size of theta. Particles are numbered globally; the mesh only
says where they live, so the result does not depend on it but for rounding.
"""

import contextlib
import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .estimators._base import PARTICLES

T = TypeVar("T")
_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
BATCH = "batch"  # the mesh axis that shares the batches of inner training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices and processes of a run; they change its numbers only by rounding."""

    distributed: bool = False
    """Run as one of several processes; SLURM, GKE and TPU pods tell JAX the rest."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no such environment tells it."""
    processes: int | None = None
    """Number of processes, where no such environment tells it."""
    process: int | None = None
    """Number of this process, counted from 0."""
    batch_devices: int = 1
    """Devices that share each inner batch (data parallelism); particles are spread over
    such groups."""
    shard_theta: bool = False
    """Shard theta and the outer optimizer's state over the particles axis, too."""

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if any(x is not None for x in given):
            if any(x is None for x in given):
                raise ValueError(
                    "coordinator, processes and process go together: give all three, "
                    "or none where SLURM, GKE or a TPU pod tells"
                )
            if not self.distributed:
                raise ValueError("coordinator is for distributed runs: add distributed")
        if self.batch_devices < 1:
            raise ValueError(f"batch_devices must be >= 1, not {self.batch_devices}")


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


def make_mesh(
    topology: Topology, particles: int, *, devices: Sequence[Any] | None = None
) -> Mesh | None:
    """All devices of all processes; None where there is only one.

    Args:
      topology: `batch_devices` is the size of the "batch" axis.
      particles: of an estimator; must be a multiple of the "particles" axis.
      devices: in place of all.

    Raises:
      ValueError: sizes that do not divide; the message names ones that do.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if count % topology.batch_devices:
        raise ValueError(
            f"{count} devices cannot be split in groups of batch_devices="
            f"{topology.batch_devices}; choose a divisor"
        )
    if count == 1:
        return None
    size = count // topology.batch_devices
    if particles % size:
        raise ValueError(
            f"{particles} particles cannot be shared by {size} devices: choose a "
            f"multiple, such as {-(-particles // size) * size}"
        )
    return jax.make_mesh(
        (size, topology.batch_devices),
        (PARTICLES, BATCH),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def on_particles(tree: Any, axis: int = 0) -> Any:
    """Keeps the particles, at this axis of all leaves, spread over the mesh."""
    return _constrained(tree, PARTICLES, axis)


def on_batch(tree: Any) -> Any:
    """Spreads the examples, the leaves' first axis, over the mesh's "batch" axis."""
    return _constrained(tree, BATCH, 0)


def _constrained(tree: Any, name: str, axis: int) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get(name, 1) == 1:
        return tree

    def constrain(x):
        if x.ndim <= axis or x.shape[axis] % mesh.shape[name]:
            return x
        spec = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * axis, name)
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(constrain, tree)


def per_device(f: Callable, signed: int, shared: int) -> Callable:
    """`f(*signed, *shared, data)` with each device seeing its own particles only.

    The first `signed` arguments and all results lead with (S, N), the next `shared`
    arguments with (N,). So nothing is left for the compiler to partition, and what it
    could not, such as a native kernel, can be used.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get(PARTICLES, 1) == 1:
        return f
    signs, own = PartitionSpec(None, PARTICLES), PartitionSpec(PARTICLES)
    return jax.shard_map(
        f,
        in_specs=(signs,) * signed + (own,) * shared + (PartitionSpec(),),
        out_specs=signs,
        axis_names={PARTICLES},  # batches are left to the compiler
        check_vma=False,
    )


def run_shardings(
    mesh: Mesh, outer: Any, specs: Any, topology: Topology
) -> tuple[Any, Any, Any]:
    """Where an outer step's arguments lie: (outer, worker, data).

    Args:
      mesh: from `make_mesh`.
      outer: theta and what belongs to it: replicated, or with `topology.shard_theta`
        each array sharded along its longest axis that can be.
      specs: the estimator's.
      topology: of the run.
    """

    def outer_sharding(x):
        spec: list[str | None] = [None] * x.ndim
        able = [i for i, n in enumerate(x.shape) if n % mesh.shape[PARTICLES] == 0]
        if topology.shard_theta and able:
            spec[max(able, key=lambda i: x.shape[i])] = PARTICLES
        return NamedSharding(mesh, PartitionSpec(*spec))

    worker = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(outer_sharding, outer), worker, replicated


def place(tree: Any, where: Any) -> Any:
    """Puts arrays that every process has in full where these shardings say.

    Args:
      tree: equal in all processes.
      where: a prefix tree of shardings.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, where)

    def put(x, sharding):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
        host = np.asarray(x)
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: host[index]
        )

    return jax.tree.map(
        lambda sharding, part: jax.tree.map(lambda x: put(x, sharding), part),
        where,
        tree,
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
