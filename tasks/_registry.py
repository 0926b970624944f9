"""Tasks by name, for configurations and the command line."""

from ._base import TaskFamily
from ._heldout import HELDOUT as _HELDOUT
from ._spec import TaskSpec


def _mlp(*hidden: int) -> TaskSpec:
    return TaskSpec("image_mlp", {"datasets": ("digits", "patches"), "hidden": hidden})


FAMILIES: dict[str, TaskSpec] = {
    "quadratic10": TaskSpec("quadratic"),
    "mlp16": _mlp(16),
    "mlp32": _mlp(32),
    "mlp64": _mlp(64),
    "mlp32x32": _mlp(32, 32),
    **_HELDOUT,
}

HELDOUT = tuple(_HELDOUT)


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
    return FAMILIES[name].family()
