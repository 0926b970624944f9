"""Task families by name, for configurations and the command line."""

from collections.abc import Callable

from ._base import TaskFamily
from .data import digits, patches
from .families import image_mlp, quadratic


def _heldout(name: str) -> Callable[[], TaskFamily]:
    def make() -> TaskFamily:
        try:
            from . import _heldout
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the task {name!r} needs flax: pip install 'l2o[train]'"
            ) from error
        return getattr(_heldout, name)()

    return make


def _mlp(*hidden: int) -> Callable[[], TaskFamily]:
    return lambda: image_mlp([digits(), patches()], hidden)


FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "quadratic10": quadratic,
    "mlp16": _mlp(16),
    "mlp32": _mlp(32),
    "mlp64": _mlp(64),
    "mlp32x32": _mlp(32, 32),
    "deep_mlp": _heldout("deep_mlp"),
    "conv": _heldout("conv"),
    "autoencoder": _heldout("autoencoder"),
    "transformer_lm": _heldout("transformer_lm"),
}

HELDOUT = ("deep_mlp", "conv", "autoencoder", "transformer_lm")


def make_family(name: str) -> TaskFamily:
    """The task family of that name.

    Raises:
      ValueError: unknown name; the message lists the known ones.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("mlp32")
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown task family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]()
