"""The native kernels' shared library: which instruction set, loaded when first needed.

`cpp/` is compiled when the package is built, once per instruction set, if there is a
C++ compiler; the best for the processor is loaded.
"""

import ctypes
import functools
import os
from pathlib import Path

import jax

from ..names import check_known

UPDATE, REVERSE = "l2o_update", "l2o_update_vjp"
STATISTICS = "l2o_statistics"
INSTRUCTIONS = ("generic", "avx2", "avx512")  # as `l2o_instructions` numbers them
TOGETHER = 16  # what XLA does about a call grows with the square of its operands
_VARIABLE = "L2O_INSTRUCTIONS"  # bounds the choice


@functools.cache
def unavailable() -> str | None:
    """Why there are no native kernels; None if there are."""
    try:
        _load()
    except Exception as error:  # whatever it is, there is plain JAX
        return str(error)
    return None


def instructions() -> str:
    """The instruction set of the loaded kernels: generic, avx2 or avx512."""
    return _load()


@functools.cache
def _load() -> str:
    generic = _path("generic")
    if not generic.exists():
        raise ValueError(
            "they were not built, for want of a C++ compiler when l2o was installed"
        )
    number = ctypes.CDLL(str(generic)).l2o_instructions()
    highest = os.environ.get(_VARIABLE, INSTRUCTIONS[number])
    check_known(_VARIABLE, highest, INSTRUCTIONS)
    number = min(number, INSTRUCTIONS.index(highest))
    # A compiler may know fewer instruction sets than the processor.
    built = [name for name in INSTRUCTIONS[: number + 1] if _path(name).exists()]
    library = ctypes.CDLL(str(_path(built[-1])))
    for target in (UPDATE, REVERSE, STATISTICS):
        capsule = jax.ffi.pycapsule(getattr(library, target))
        try:
            jax.ffi.register_ffi_target(target, capsule, platform="cpu")
        except Exception as error:
            raise ValueError(f"the installed jaxlib refuses them: {error}") from error
    return built[-1]


def _path(name: str) -> Path:
    return Path(__file__).with_name("cpp") / f"{name}.so"
