"""Datasets by name."""

import inspect
from collections.abc import Callable, Sequence

from l2o.names import unknown_name

from ._base import Dataset
from ._images import digits, elevation, glyphs, patches, shapes, textures
from ._signals import graphs, signals
from ._tables import breast_cancer, diabetes, iris, wine
from ._text import python_code, python_docs
from ._tfds import is_prepared
from ._tfds_images import TFDS_IMAGES, image_loader
from ._tfds_text import TFDS_TEXTS, lm1b, wikipedia

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "patches": patches,
    "shapes": shapes,
    "textures": textures,
    "glyphs": glyphs,
    "elevation": elevation,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "iris": iris,
    "diabetes": diabetes,
    "signals": signals,
    "graphs": graphs,
    "python_docs": python_docs,
    "python_code": python_code,
    **{name: image_loader(name) for name in TFDS_IMAGES},
    "lm1b": lm1b,
    "wikipedia": wikipedia,
}


def load(name: str | Dataset, **geometry: int | bool | None) -> Dataset:
    """The dataset of that name, in memory; a `Dataset` is returned as it is.

    Args:
      name: a key of `DATASETS`.
      **geometry: `size` of images, `length` of texts.

    Raises:
      ValueError: unknown name, or a geometry that it does not have; the message lists
        the known ones.

    Example:
      >>> from l2o.tasks.data import load
      >>> load("digits", size=16).train["x"].shape
      (1200, 16, 16, 1)
    """
    if isinstance(name, Dataset):
        return name
    if name not in DATASETS:
        raise ValueError(unknown_name("dataset", name, DATASETS))
    known = inspect.signature(DATASETS[name]).parameters
    if unknown := sorted(geometry.keys() - known):
        raise ValueError(
            f"the dataset {name} has no option {', '.join(unknown)}; known: "
            f"{', '.join(known) or 'none'}"
        )
    return DATASETS[name](**geometry)


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
    return tuple(load(name, **geometry) for name in names)
