"""Which implementation of the per-parameter update is compiled in."""

import contextlib
import os
from typing import Any, Literal, get_args

import jax

from .._tensors import sees_whole_tensors
from ..names import check_known
from . import _native

Backend = Literal["native", "pallas", "xla"]
_VARIABLE = "L2O_BACKEND"

_context: Any = jax.make_user_context(None)


def backend(name: Backend | None) -> contextlib.AbstractContextManager[None]:
    """In its scope the update of per-parameter networks is compiled this way.

    | name | what |
    |---|---|
    | "native" | kernels in C++ for CPUs, where they were built and fit the rule |
    | "pallas" | kernels in Pallas for GPUs and TPUs, where they fit; elsewhere slow |
    | "xla" | plain JAX, on every platform |
    | None | what L2O_BACKEND in the environment says, else native where possible |

    What a `jax.jit` has compiled is kept per backend. All derivatives work with each;
    plain JAX computes them but for the native kernels' reverse mode. `jax.export` takes
    plain JAX in place of native kernels.

    Args:
      name: from the table.

    Raises:
      ValueError: an unknown name; or the kernels were not built.

    Example:
      >>> import l2o
      >>> with l2o.backend("xla"):
      ...     l2o.chosen_backend()
      'xla'
    """
    if name is not None:
        _check(name, "backend")
    if name == "native" and _native.unavailable() is not None:
        raise ValueError(f"no native kernels: {_native.unavailable()}")
    return _context(name)


def chosen_backend() -> Backend:
    """How the update of per-parameter networks would be compiled here and now.

    Kernels see whole tensors. So they are used on one device, or where `jax.shard_map`
    has given each device tensors of its own. Those in Pallas are never the default.

    Raises:
      ValueError: L2O_BACKEND has an unknown value.
    """
    name: Any = _context.value or os.environ.get(_VARIABLE, "native")
    _check(name, _VARIABLE)
    if name == "native" and not _native_runs():
        return "xla"
    return name if sees_whole_tensors() else "xla"


def native_kernels() -> str | None:
    """The instruction set of the native kernels: avx512, avx2 or generic.

    None where there are none; `with l2o.backend("native")` says why.
    """
    return _native.instructions() if _native.unavailable() is None else None


def _native_runs() -> bool:
    return _native.unavailable() is None and jax.default_backend() == "cpu"


def _check(name: str, where: str) -> None:
    check_known(where, name, get_args(Backend))
