"""Datasets by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from l2o.doors import Door

from ._base import Dataset
from ._characters import characters, fonts
from ._images import digits, elevation, glyphs, patches, shapes, textures
from ._signals import graphs, signals
from ._tables import breast_cancer, diabetes, iris, wine
from ._text import python_code, python_docs, python_library
from ._tfds import is_prepared
from ._tfds_images import TFDS_IMAGES, image_loader
from ._tfds_text import TFDS_TEXTS, lm1b, wikipedia

_DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "patches": patches,
    "shapes": shapes,
    "textures": textures,
    "glyphs": glyphs,
    "characters": characters,
    "fonts": fonts,
    "elevation": elevation,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "iris": iris,
    "diabetes": diabetes,
    "signals": signals,
    "graphs": graphs,
    "python_docs": python_docs,
    "python_code": python_code,
    "python_library": python_library,
    **{name: image_loader(name) for name in TFDS_IMAGES},
    "lm1b": lm1b,
    "wikipedia": wikipedia,
}


def _check_loader(loader: Any) -> None:
    if not callable(loader):
        raise TypeError(f"expected a function that returns a Dataset, got {loader!r}")


DATASETS: Door[Callable[..., Dataset]] = Door(
    "dataset", "l2o.datasets", _DATASETS, check=_check_loader
)


def register_dataset(name: str, loader: Callable[..., Dataset]) -> None:
    """Gives a dataset of one's own a name, for this process.

    From then on specs of tasks may name it. A distribution that announces it as an
    entry point of the group `l2o.datasets` is known to every process, and to the `l2o`
    command.

    Args:
      name: that no other has.
      loader: a function that returns a `Dataset`, best one that remembers it; `size` of
        images and `length` of texts are its keyword arguments.

    Raises:
      ValueError: the name is taken.
      TypeError: it is no function.

    Example:
      >>> import functools, numpy as np
      >>> from l2o.tasks import from_arrays, load_dataset, register_dataset
      >>> @functools.cache
      ... def stripes():
      ...     return from_arrays({"x": np.eye(40), "y": np.arange(40) % 2})
      >>> register_dataset("stripes", stripes)
      >>> load_dataset("stripes").train["x"].shape
      (28, 40)
    """
    DATASETS.register(name, loader)


def load_dataset(name: str | Dataset, **geometry: int | bool | None) -> Dataset:
    """The dataset of that name, in memory; a `Dataset` is returned as it is.

    Args:
      name: a key of `DATASETS`.
      **geometry: `size` of images, `length` of texts.

    Raises:
      ValueError: unknown name, or a geometry that it does not have; the message lists
        the known ones.

    Example:
      >>> from l2o.tasks.data import load_dataset
      >>> load_dataset("digits", size=16).train["x"].shape
      (1200, 16, 16, 1)
    """
    if isinstance(name, Dataset):
        return name
    loader = DATASETS.find(name)
    known = inspect.signature(loader).parameters
    if unknown := sorted(geometry.keys() - known):
        raise ValueError(
            f"the dataset {name} has no option {', '.join(unknown)}; known: "
            f"{', '.join(known) or 'none'}"
        )
    return loader(**geometry)


def is_available(name: str) -> bool:
    """Whether `load` would find the data: they are offline, or TFDS has prepared them.

    Args:
      name: a key of `DATASETS`.
    """
    if name in TFDS_TEXTS:
        return is_prepared(name)
    return name not in TFDS_IMAGES or is_prepared(TFDS_IMAGES[name][0])


def load_all(
    names: Sequence[str | Dataset], **geometry: int | bool | None
) -> tuple[Dataset, ...]:
    """As `load`, one after the other.

    Raises:
      ValueError: no names, or a single one that is no sequence; and as `load`.
    """
    if isinstance(names, str) or not names:
        raise ValueError(
            "datasets are a sequence of names or datasets, not "
            f"{repr(names) if names else 'none at all'}"
        )
    return tuple(load_dataset(name, **geometry) for name in names)
