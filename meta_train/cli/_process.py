"""How the `l2o` command uses the machine, set before JAX starts."""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

import jax

from l2o.tasks import cache_folder

from .._mesh import Topology

_config: Any = jax.config  # whose attributes its type does not name
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt


def configure_process() -> None:
    """Keeps compiled programs for the next process, and memory for the next step.

    Programs are kept in `$L2O_CACHE/xla`, or where JAX_COMPILATION_CACHE_DIR says.
    """
    if _config.jax_compilation_cache_dir is None:
        folder = Path(cache_folder()) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A hundred programs of a few milliseconds make up half of a start.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA asks for its temporaries at every step. glibc would return large ones to the
    # system, which fills new ones with zeros, page by page.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**26)  # the size of a thread's heaps: none is given up


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
