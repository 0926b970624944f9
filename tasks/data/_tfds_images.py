"""Image classification from tensorflow-datasets: in memory, or as a stream."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ._base import Dataset
from ._images import channels, resize
from ._stream import Stream, stream
from ._tfds import (
    Source,
    check_size,
    count,
    find,
    image_splits,
    loaded,
    opened,
    read_all,
    require,
)

# The name here: the name at TFDS, and the size that images have by default.
TFDS_IMAGES: dict[str, tuple[str, int]] = {
    "mnist": ("mnist", 28),
    "fashion_mnist": ("fashion_mnist", 28),
    "cifar10": ("cifar10", 32),
    "cifar100": ("cifar100", 32),
    "svhn_cropped": ("svhn_cropped", 32),
    "food101": ("food101", 32),
    "imagenet16": ("imagenet_resized/16x16", 16),
    "imagenet32": ("imagenet_resized/32x32", 32),
    "imagenet64": ("imagenet_resized/64x64", 64),
}


def tfds_images(
    name: str,
    size: int | None = None,
    grey: bool | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Images and labels that TFDS has prepared; nothing is downloaded.

    train is `train[:80%]`, inner_valid `train[80%:90%]`, outer_valid `train[90%:]`, and
    test is `test`; where there is none, as in food101 and imagenet_resized, it is
    `validation`.

    x: (n, size, size, 1 or 3) float32 in [0, 1], resized bilinearly without
    antialiasing; y: (n,) int32.

    Args:
      name: as TFDS knows it; needs features `image` and `label`, or supervised keys.
      size: height and width; None leaves images of one shape as they are.
      grey: True takes the mean of the channels, False makes three equal ones of one,
        None leaves them as they are.
      data_dir: as in `tfds_arrays`.

    Raises:
      FileNotFoundError, ValueError, ModuleNotFoundError: as `tfds_arrays`.

    Example:
      >>> import tempfile
      >>> from l2o.tasks.data import prepare, tfds_images
      >>> folder = tempfile.mkdtemp()
      >>> _ = prepare("digits", folder)
      >>> tfds_images("digits", size=16, data_dir=folder).train["x"].shape
      (1200, 16, 16, 1)

    Source: splits and resizing as in google/learned_optimization.
    """
    return _cached(name, find(name, data_dir), size, grey)


def tfds_stream(
    name: str,
    examples: int,
    size: int | None = None,
    grey: bool | None = None,
    *,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> Stream:
    """As `tfds_images`, of which the device holds a window; see `stream`.

    Args:
      name, size, grey, data_dir: as in `tfds_images`.
      examples: of the window, and at most of each other split.
      seed: of the order.

    Raises:
      FileNotFoundError, ValueError, ModuleNotFoundError: as `tfds_arrays`.

    Example:
      >>> import tempfile
      >>> from l2o.tasks.data import prepare, tfds_stream
      >>> folder = tempfile.mkdtemp()
      >>> _ = prepare("digits", folder)
      >>> tfds_stream("digits", 100, data_dir=folder).window.train["x"].shape
      (100, 8, 8, 1)
    """
    source = opened(name, find(name, data_dir))
    convert = _converter(source, size, grey)
    splits = image_splits(source)
    train = splits.pop("train")
    held_out = Dataset(
        train={},
        **{
            split: read_all(source, at, examples, convert=convert)
            for split, at in splits.items()
        },
    )
    return stream(
        source.read(train), examples, held_out=held_out, seed=seed, transform=convert
    )


def image_loader(name: str) -> Callable[..., Dataset]:
    """`(size, grey) -> Dataset`, for a name in `TFDS_IMAGES`."""
    tfds_name, native = TFDS_IMAGES[name]

    def load(size: int = native, grey: bool = True) -> Dataset:
        return tfds_images(tfds_name, size, grey)

    load.__name__ = name
    return load


@functools.cache
def _cached(name: str, folder: Path, size: int | None, grey: bool | None) -> Dataset:
    source = opened(name, folder)
    convert = _converter(source, size, grey)
    shape = source.info.features[_keys(source)[0]].shape
    sides = shape[:2] if size is None else (size, size)
    depth = shape[2] if grey is None else 1 if grey else 3
    if None not in (*sides, depth):
        check_size(name, count(source), 4 * sides[0] * sides[1] * depth)
    return loaded(source, image_splits(source), convert)


def _keys(source: Source) -> tuple[str, str]:
    """The features that hold images and labels."""
    keys = source.info.supervised_keys or ("image", "label")
    require(source, keys)
    return keys


def _converter(
    source: Source, size: int | None, grey: bool | None
) -> Callable[[list[dict[str, Any]]], dict[str, np.ndarray]]:
    """From examples to x and y."""
    image, label = _keys(source)

    def convert(examples):
        images = [np.asarray(example[image]) for example in examples]
        shapes = {x.shape for x in images}
        if len(shapes) == 1:
            x = _resized(np.stack(images), size, grey)
        elif size is None:
            raise ValueError(f"images of {source.name} differ in shape: give a size")
        else:
            x = np.concatenate([_resized(x[None], size, grey) for x in images])
        return {"x": x, "y": np.asarray([e[label] for e in examples], np.int32)}

    return convert


def _resized(x: np.ndarray, size: int | None, grey: bool | None) -> np.ndarray:
    scaled = x.astype(np.float32) / 255
    if grey is not None:
        scaled = channels(scaled, grey)
    return scaled if size is None else resize(scaled, size)
