"""Presets: one module each, with a `Preset` that says what to expect of it.

The module's docstring says what it reproduces, how long it takes and what it reaches.
Other distributions add theirs as entry points of the group `l2o.presets`, modules with
`META_TRAIN` and `EVALUATION`; a file of one's own is named by its path.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from l2o.doors import Door
from l2o.names import expanded, is_path, present_name

from .._config import Config, Evaluation


class Preset(NamedTuple):
    """A meta-training run and the evaluation that belongs to it."""

    meta_train: Config
    evaluation: Evaluation


def _check_module(module: Any) -> None:
    for name, kind in (("META_TRAIN", Config), ("EVALUATION", Evaluation)):
        if not isinstance(getattr(module, name, None), kind):
            raise TypeError(
                f"a preset is a module with {name}, a {kind.__name__} of l2o.meta_train"
            )


_RENAMED = {"celo2_mixed": "normalized_mixed"}
_OWN = {module.name: module.name for module in pkgutil.iter_modules(__path__)}
PRESETS: Door[ModuleType] = Door(
    "preset",
    "l2o.presets",
    dict(sorted(_OWN.items())),
    load=lambda name, module: importlib.import_module(f"{__name__}.{module}"),
    check=_check_module,
)


def names() -> list[str]:
    """The presets there are."""
    return list(PRESETS)


def load(name: str) -> Preset:
    """The preset of that name, or in the Python file of that path.

    Args:
      name: of `names()`; or a path, which ends in `.py` or is spelled as one. The file
        is run: name none that you would not run.

    Raises:
      ValueError: unknown name, with the known ones; or a file without a preset.
      FileNotFoundError: there is no such file.

    Example:
      >>> from l2o.meta_train import presets
      >>> config = presets.load("smoke").meta_train
    """
    module = _module(name)
    return Preset(module.META_TRAIN, module.EVALUATION)


def summary(name: str) -> str:
    """First line of the preset's docstring."""
    return (_module(name).__doc__ or "").strip().split("\n")[0]


def _module(name: str) -> ModuleType:
    if not (name.endswith(".py") or is_path(name)):
        name = present_name("preset", name, _RENAMED)
        return PRESETS.find(name, paths="a preset in a file of your own")
    return _of_file(expanded(name))


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no preset {path}: check the path")
    spec = importlib.util.spec_from_file_location(f"l2o_preset_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: a preset's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        _check_module(module)
    except Exception as error:  # whatever the file does
        raise ValueError(
            f"the preset {path} cannot be used: {type(error).__name__}: {error}"
        ) from error
    return module


__all__ = [
    "PRESETS",
    "Config",
    "Evaluation",
    "Preset",
    "load",
    "names",
    "summary",
]
