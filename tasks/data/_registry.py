"""Datasets by name."""

from collections.abc import Callable, Sequence

from ._base import Dataset
from ._images import digits, patches
from ._text import python_docs

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "patches": patches,
    "python_docs": python_docs,
}


def load(name: str | Dataset, **geometry: int | bool | None) -> Dataset:
    """The dataset of that name, in memory; a `Dataset` is returned as it is.

    Args:
      name: a key of `DATASETS`.
      **geometry: `size` of images, `length` of texts.

    Raises:
      ValueError: unknown name; the message lists the known ones.

    Example:
      >>> from l2o.tasks.data import load
      >>> load("digits", size=16).train["x"].shape
      (1200, 16, 16, 1)
    """
    if isinstance(name, Dataset):
        return name
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name](**geometry)


def load_all(
    names: Sequence[str | Dataset], **geometry: int | bool | None
) -> tuple[Dataset, ...]:
    """As `load`, one after the other."""
    return tuple(load(name, **geometry) for name in names)
