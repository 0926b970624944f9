"""The offline datasets, written as tensorflow-datasets writes its own."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._base import Dataset
from ._images import digits, patches
from ._text import python_code_bytes, python_docs_bytes
from ._tfds import MISSING_TFDS

_VERSION = "1.0.0"
Examples = list[dict[str, Any]]


def prepare(name: str, data_dir: str | os.PathLike) -> Path:
    """Writes a dataset for tensorflow-datasets, as array_record; needs no TensorFlow.

    Images have the features of mnist: `image`, 8-bit grey, and `label`; their training
    split holds train, inner_valid and outer_valid in this order, so that for digits
    `tfds_images` gives the splits that `digits` has. Texts have the feature `text`, of
    lm1b: their paragraphs, of which the last tenth is the test split.

    Args:
      name: "digits", "patches", "python_docs" or "python_code".
      data_dir: in which the folder `name` is made; what is there already stays.

    Returns:
      The folder of the version.

    Raises:
      ValueError: another name.
      ModuleNotFoundError: tensorflow-datasets is not installed.

    Example:
      >>> import tempfile
      >>> from l2o.tasks.data import prepare
      >>> prepare("digits", tempfile.mkdtemp()).name
      '1.0.0'
    """
    splits: dict[str, Callable[[], dict[str, Examples]]] = {
        "digits": lambda: _images(digits()),
        "patches": lambda: _images(patches()),
        "python_docs": lambda: _paragraphs(python_docs_bytes()),
        "python_code": lambda: _paragraphs(b"\n\n".join(python_code_bytes())),
    }
    if name not in splits:
        raise ValueError(f"cannot prepare {name!r}; known: {', '.join(splits)}")
    return write(name, _VERSION, splits[name](), data_dir)


def write(
    name: str, version: str, splits: dict[str, Examples], data_dir: str | os.PathLike
) -> Path:
    """Writes examples with features `image` and `label`, or `text`.

    Args:
      name: of the dataset, also its folder's.
      version: such as "1.0.0".
      splits: an image is uint8 (height, width, channels).
      data_dir: the root.
    """
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING_TFDS) from error

    # TFDS's own `store_as_tfds_dataset` imports TensorFlow to tell iterables apart.
    class Builder(  # type: ignore[call-arg]
        tfds.dataset_builders.AdhocBuilder, skip_registration=True
    ):
        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {split: iter(enumerate(x)) for split, x in splits.items()}

    builder = Builder(
        name=name,
        version=version,
        features=_features(tfds.features, splits["train"]),
        split_datasets=splits,
        data_dir=Path(data_dir),
        file_format="array_record",
        disable_shuffling=True,
    )
    # It tells of a download, which there is not.
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        builder.download_and_prepare()
    return Path(builder.data_path)


def _features(features: Any, examples: Examples) -> Any:
    if "text" in examples[0]:
        return features.FeaturesDict({"text": features.Text()})
    image = features.Tensor(shape=examples[0]["image"].shape, dtype=np.uint8)
    classes = 1 + max(example["label"] for example in examples)
    label = features.ClassLabel(num_classes=classes)
    return features.FeaturesDict({"image": image, "label": label})


def _images(dataset: Dataset) -> dict[str, Examples]:
    def examples(*splits: dict[str, Any]) -> Examples:
        x, y = (np.concatenate([split[key] for split in splits]) for key in "xy")
        grey = np.round(255 * x).astype(np.uint8)
        return [{"image": a, "label": int(b)} for a, b in zip(grey, y, strict=True)]

    train, inner_valid, outer_valid, test = dataset
    return {
        "train": examples(train, inner_valid, outer_valid),
        "test": examples(test),
    }


def _paragraphs(text: bytes) -> dict[str, Examples]:
    paragraphs = [x for x in text.decode().split("\n\n") if x.strip()]
    cut = len(paragraphs) * 9 // 10
    return {
        "train": [{"text": x} for x in paragraphs[:cut]],
        "test": [{"text": x} for x in paragraphs[cut:]],
    }
