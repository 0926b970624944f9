"""Which implementation of the per-parameter update is compiled in."""

import contextlib
import functools
import importlib
import os
from typing import Any, Literal, get_args

import jax

from .._tensors import sees_whole_tensors
from ..names import check_known
from ._library import instructions, unavailable

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
      ValueError: an unknown name; or kernels that were not built, or that need what
        the installed JAX lacks.

    Example:
      >>> import l2o
      >>> with l2o.backend("xla"):
      ...     l2o.chosen_backend()
      'xla'
    """
    if name is not None:
        _check(name, "backend")
    reason = {"native": why_no_native, "pallas": why_no_pallas}.get(str(name))
    if reason is not None and reason() is not None:
        raise ValueError(f"no {name} kernels: {reason()}")
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
    return instructions() if why_no_native() is None else None


@functools.cache
def why_no_native() -> str | None:
    """Why there are no native kernels; None if there are."""
    return unavailable() or _failure("_native", "_native_statistics")


@functools.cache
def why_no_pallas() -> str | None:
    """Why there are no Pallas kernels; None if there are."""
    return _failure("_pallas")


def _failure(*modules: str) -> str | None:
    """Why one of these cannot be imported: they use what JAX need not keep."""
    try:
        for module in modules:
            importlib.import_module(f"{__package__}.{module}")
    except Exception as error:  # whatever it is, there is plain JAX
        return f"this JAX lacks what they need ({type(error).__name__}: {error})"
    return None


def _native_runs() -> bool:
    return why_no_native() is None and jax.default_backend() == "cpu"


def _check(name: str, where: str) -> None:
    check_known(where, name, get_args(Backend))
