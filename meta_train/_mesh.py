"""One program on any mesh of devices: particles along one axis, batches along another.

Estimators are written as if there were one device. On a mesh their state lies sharded
over its "particles" axis, and the compiler partitions the program: particles share
nothing but theta and the data until their gradients are summed, so an outer step has
one all-reduce, of the size of theta. Particles are numbered globally; the mesh only
says where they live, so the result does not depend on it but for rounding.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PARTICLES = "particles"  # the mesh axis over which inner runs are sharded
BATCH = "batch"  # the mesh axis that shares the batches of inner training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices and processes of a run; they change its numbers only by rounding.

    Attributes:
      distributed: Run as one of several processes; SLURM, GKE and TPU pods tell JAX the
        rest.
      coordinator: HOST:PORT of process 0, where no such environment tells it.
      processes: Number of processes, where no such environment tells it.
      process: Number of this process, counted from 0.
      batch_devices: Devices that share each inner batch (data parallelism); particles
        are spread over such groups.
      shard_theta: Shard theta and the outer optimizer's state over the particles axis,
        too.
    """

    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    batch_devices: int = 1
    shard_theta: bool = False

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if any(x is not None for x in given):
            if self.processes is None or self.process is None or not self.coordinator:
                raise ValueError(
                    "coordinator, processes and process go together: give all three, "
                    "or none where SLURM, GKE or a TPU pod tells"
                )
            if not self.distributed:
                raise ValueError("coordinator is for distributed runs: add distributed")
            if not 0 <= self.process < self.processes:
                raise ValueError(
                    f"process counts from 0 to {self.processes - 1}, the number of "
                    f"processes less one: it cannot be {self.process}"
                )
        if self.batch_devices < 1:
            raise ValueError(f"batch_devices must be >= 1, not {self.batch_devices}")


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
