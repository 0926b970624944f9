"""Datasets that tensorflow-datasets has prepared, read without TensorFlow."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._base import SPLITS, Dataset, on_device
from ._stream import stacked

MISSING_TFDS = "datasets of TFDS need tensorflow-datasets: pip install 'l2o[data]'"
MOST_BYTES = 2**31  # that a dataset may take of a device's memory
_FORMAT = (
    "array_record"  # of the others, TFDS reads none, or no part, without TensorFlow
)
_BLOCK = 1024  # examples decoded at a time
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Source(NamedTuple):
    """A prepared dataset, opened."""

    name: str
    info: Any  # its tfds.core.DatasetInfo
    read: Callable[[str], Any]  # `split -> random-access source of examples`


def tfds_arrays(
    name: str,
    features: Mapping[str, str],
    splits: Mapping[str, str] | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Any dataset of tensorflow-datasets whose examples are of one shape.

    Args:
      name: as TFDS knows it, such as "mnist" or "imagenet_resized/16x16".
      features: under which name each feature goes, such as `{"x": "image"}`.
      splits: of TFDS, for each of ours. By default train is `train[:80%]`, inner_valid
        `train[80%:90%]`, outer_valid `train[90%:]`, and test is `test`, or `validation`
        where there is no `test`.
      data_dir: where prepared datasets are; by default the environment's
        `TFDS_DATA_DIR`, or else `~/tensorflow_datasets`.

    Raises:
      FileNotFoundError: the dataset is not prepared there; the message has the command
        that does it. Nothing is ever downloaded.
      ValueError: it has another file format, lacks a feature or a split, or is too
        large for a device.
      ModuleNotFoundError: tensorflow-datasets is not installed.

    Example:
      >>> import tempfile
      >>> from l2o.tasks.data import prepare, tfds_arrays
      >>> folder = tempfile.mkdtemp()
      >>> _ = prepare("digits", folder)
      >>> data = tfds_arrays("digits", {"x": "image"}, data_dir=folder)
      >>> data.train["x"].shape, data.train["x"].dtype
      ((1200, 8, 8, 1), dtype('uint8'))
    """
    source = opened(name, find(name, data_dir))
    require(source, features.values())
    each = sum(_bytes(source.info.features[key]) for key in features.values())
    check_size(name, count(source), each)

    def convert(examples):
        return stacked([{k: x[v] for k, v in features.items()} for x in examples])

    return loaded(source, splits or image_splits(source), convert)


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether TFDS has prepared it in a format that can be read; looks at folders only.

    Args:
      name: as TFDS knows it.
      data_dir: as in `tfds_arrays`.
    """
    return any(_format(folder) == _FORMAT for folder in _candidates(name, data_dir))


def opened(name: str, folder: Path) -> Source:
    """The dataset in a folder that `find` gave."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING_TFDS) from error
    builder = tfds.builder_from_directory(folder)
    return Source(name, builder.info, lambda split: builder.as_data_source(split=split))


def find(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of the newest version of a prepared dataset."""
    found = _candidates(name, data_dir)
    root = _root(data_dir)
    if not found:
        raise FileNotFoundError(
            f"{name} is not prepared in {root}, and l2o downloads nothing. Prepare it "
            f"once, where there is a network: pip install tensorflow "
            f"tensorflow-datasets; {_command(name, root)}"
        )
    if len(found) > 1:
        configs = ", ".join(f"{name}/{folder.parent.name}" for folder in found)
        raise ValueError(f"{name} has several prepared configs; name one: {configs}")
    (folder,) = found
    if (given := _format(folder)) != _FORMAT:
        raise ValueError(
            f"{folder} holds {given} files, which cannot be read without TensorFlow or "
            f"not in parts; prepare it again as {_FORMAT}: "
            f"{_command(name, root)} --overwrite"
        )
    return folder


def count(source: Source) -> int:
    """Examples of all splits."""
    return sum(split.num_examples for split in source.info.splits.values())


def require(source: Source, features: Sequence[str] | Any) -> None:
    """Raises `ValueError` if a feature is missing."""
    known = list(source.info.features)
    missing = [key for key in features if key not in known]
    if missing:
        raise ValueError(
            f"{source.name} has no feature {', '.join(map(repr, missing))}; it has "
            f"{', '.join(known)}"
        )


def check_size(name: str, examples: int, bytes_each: int) -> None:
    """Raises `ValueError` if the dataset does not fit on a device."""
    total = examples * bytes_each
    if total > MOST_BYTES:
        raise ValueError(
            f"{name} would take {total / 2**30:.1f} GiB of the device's memory: choose "
            "a smaller size, or stream it with l2o.tasks.data.tfds_stream or stream"
        )


def image_splits(source: Source) -> dict[str, str]:
    """Ours, in terms of those of TFDS."""
    return {
        "train": "train[:80%]",
        "inner_valid": "train[80%:90%]",
        "outer_valid": "train[90%:]",
        "test": test_split(source),
    }


def test_split(source: Source) -> str:
    """What is the test split; `validation` where there is no `test`."""
    for split in ("test", "validation"):
        if split in source.info.splits:
            return split
    raise ValueError(
        f"{source.name} has no split 'test' or 'validation', only "
        f"{', '.join(source.info.splits)}: name the splits in tfds_arrays"
    )


def loaded(
    source: Source,
    splits: Mapping[str, str],
    convert: Callable[[list[dict[str, Any]]], dict[str, np.ndarray]],
) -> Dataset:
    """The splits on the device."""
    return on_device(
        Dataset(
            **{
                split: read_all(source, splits[split], convert=convert)
                for split in SPLITS
            }
        )
    )


def read_all(
    source: Source,
    split: str,
    most: int | None = None,
    *,
    convert: Callable[[list[dict[str, Any]]], Any],
) -> Any:
    """The examples of a split, converted and concatenated.

    Args:
      source: the dataset.
      split: as TFDS writes it.
      most: only so many, the first.
      convert: from a list of examples to a dict of arrays, or a list.
    """
    size = source.info.splits[split].num_examples
    if size == 0:
        raise ValueError(f"the split {split!r} of {source.name} is empty")
    size = size if most is None else min(most, size)
    examples = source.read(split)
    blocks = [
        convert(examples.__getitems__(range(i, min(i + _BLOCK, size))))
        for i in range(0, size, _BLOCK)
    ]
    if isinstance(blocks[0], list):
        return [x for block in blocks for x in block]
    return {key: np.concatenate([b[key] for b in blocks]) for key in blocks[0]}


def _root(data_dir: str | os.PathLike | None) -> Path:
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser()


def _candidates(name: str, data_dir: str | os.PathLike | None) -> list[Path]:
    """Newest version of the dataset, or else of each of its configs."""
    folder = _root(data_dir) / name
    if (found := _newest(folder)) is not None:
        return [found]
    configs = sorted(folder.iterdir()) if folder.is_dir() else []
    return [found for config in configs if (found := _newest(config)) is not None]


def _newest(folder: Path) -> Path | None:
    versions = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()
    ]
    return max(versions, key=lambda x: [*map(int, x.name.split("."))], default=None)


def _format(folder: Path) -> str:
    info = json.loads((folder / "dataset_info.json").read_text())
    return info.get("fileFormat", "tfrecord")


def _command(name: str, root: Path) -> str:
    # Without a config all of them would be built, one for each language.
    name = f"{name}/20230601.en" if name == "wikipedia" else name
    return f"tfds build {name} --file_format={_FORMAT} --data_dir={root}"


def _bytes(feature: Any) -> int:
    """Of one example, where it is known."""
    # Its `dtype` would need TensorFlow.
    size = 0 if None in feature.shape else math.prod(feature.shape)
    return size * np.dtype(feature.np_dtype).itemsize
