"""Text from tensorflow-datasets: documents, cropped or padded."""

import functools
import os
from pathlib import Path
from typing import Any

from ._base import SPLITS, Dataset, on_device
from ._tfds import Source, check_size, find, opened, read_all, require
from ._tokens import encoder, padded

# The same names at TFDS.
TFDS_TEXTS = ("lm1b", "wikipedia")


def tfds_text(
    name: str,
    length: int = 32,
    vocabulary: int | None = None,
    *,
    documents: int | None = 100_000,
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Documents that TFDS has prepared, such as lm1b; nothing is downloaded.

    inner_valid is `train[:1%]`, outer_valid `train[1%:2%]`; where there is a split
    `test` that is test and train is `train[2%:]`, else test is `train[2%:3%]` and train
    is `train[3%:]`.

    x: (n, length) int32, the first tokens of each document; y: the same, one token
    later. Shorter documents are padded with 0.

    Args:
      name: as TFDS knows it; needs a feature `text`.
      length: tokens of an example.
      vocabulary: None for bytes, 256 of them; else so many word pieces at most, learned
        from the training documents that were read; see `word_pieces`.
      documents: read at most so many for train, and a tenth of them for each other
        split: such a corpus has millions. None reads all.
      data_dir: as in `tfds_arrays`.

    Raises:
      FileNotFoundError, ValueError, ModuleNotFoundError: as `tfds_arrays`.

    Example:
      >>> import tempfile
      >>> from l2o.tasks.data import prepare, tfds_text
      >>> folder = tempfile.mkdtemp()
      >>> _ = prepare("python_docs", folder)
      >>> tfds_text("python_docs", 16, data_dir=folder).test["x"].shape[1]
      16

    Source: splits and padding as in google/learned_optimization.
    """
    return _cached(name, find(name, data_dir), length, vocabulary, documents)


def lm1b(length: int = 32, vocabulary: int | None = None) -> Dataset:
    """Sentences of news, the One Billion Word benchmark; see `tfds_text`."""
    return tfds_text("lm1b", length, vocabulary)


def wikipedia(length: int = 32, vocabulary: int | None = None) -> Dataset:
    """Beginnings of encyclopedia articles; see `tfds_text`."""
    return tfds_text("wikipedia", length, vocabulary)


def text_splits(source: Source) -> dict[str, str]:
    """Ours, in terms of those of TFDS."""
    valid = {"inner_valid": "train[:1%]", "outer_valid": "train[1%:2%]"}
    if "test" in source.info.splits:
        return {"train": "train[2%:]", **valid, "test": "test"}
    return {"train": "train[3%:]", **valid, "test": "train[2%:3%]"}


@functools.cache
def _cached(
    name: str,
    folder: Path,
    length: int,
    vocabulary: int | None,
    documents: int | None,
) -> Dataset:
    source = opened(name, folder)
    require(source, ["text"])
    splits = text_splits(source)
    tenth = documents and -(-documents // 10)
    most = {**dict.fromkeys(SPLITS, tenth), "train": documents}
    total = source.info.splits["train"].num_examples
    check_size(name, min(total, documents or total), 8 * length)
    texts = {
        split: read_all(source, splits[split], most[split], convert=_texts)
        for split in SPLITS
    }
    encode = encoder(vocabulary, texts["train"])
    return on_device(Dataset(**{s: padded(encode(texts[s]), length) for s in SPLITS}))


def _texts(examples: list[dict[str, Any]]) -> list[str]:
    return [example["text"].decode(errors="replace") for example in examples]
