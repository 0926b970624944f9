"""How the `l2o` command uses the machine, set before JAX starts."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax

from l2o.tasks import cache_folder

from ._mesh import Topology

_config: Any = jax.config  # whose attributes its type does not name


def keep_compiled() -> None:
    """Keeps compiled programs for the next process, in `$L2O_CACHE/xla`.

    Where JAX_COMPILATION_CACHE_DIR names a folder, that is used.
    """
    if _config.jax_compilation_cache_dir is None:
        folder = Path(cache_folder()) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def share_cores(particles: int, topology: Topology) -> None:
    """Makes as many CPU devices as there are cores, or as divide the particles.

    On one device the operations of an inner step are too small for several threads;
    particles on devices of their own need no other until the end of an outer step. A
    number that the user has set stays, and accelerators are not touched.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = "host_platform_device_count" in flags or _config.jax_num_cpu_devices > 0
    if chosen or topology.distributed or topology.batch_devices > 1:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    most = min(cores or os.cpu_count() or 1, particles)
    devices = next(n for n in range(most, 0, -1) if particles % n == 0)
    # A process that has used JAX before keeps the devices it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)
