"""Presets: one module each, with a `Preset` that says what to expect of it.

The module's docstring says what it reproduces, how long it takes and what it reaches.
"""

import importlib
import pkgutil
from typing import NamedTuple

from l2o.names import unknown_name

from .._config import Config, Evaluation


class Preset(NamedTuple):
    """A meta-training run and the evaluation that belongs to it."""

    meta_train: Config
    evaluation: Evaluation


def names() -> list[str]:
    """The presets there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Preset:
    """The preset of that name.

    Raises:
      ValueError: unknown name; the message lists the known ones.

    Example:
      >>> from l2o.meta_train import presets
      >>> config = presets.load("smoke").meta_train
    """
    if name not in names():
        raise ValueError(unknown_name("preset", name, names()))
    module = importlib.import_module(f"{__name__}.{name}")
    return Preset(module.META_TRAIN, module.EVALUATION)


def summary(name: str) -> str:
    """First line of the preset's docstring."""
    module = importlib.import_module(f"{__name__}.{name}")
    return (module.__doc__ or "").strip().splitlines()[0]
