"""Datasets: what is found offline, and what was prepared on this machine."""

from ._base import SPLITS, Dataset, Split, View, from_arrays, sample_batch
from ._characters import characters, fonts
from ._images import digits, elevation, glyphs, patches, photograph, shapes, textures
from ._prepare import prepare
from ._registry import DATASETS, is_available, load_all, load_dataset, register_dataset
from ._stream import Stream, stream
from ._text import python_code, python_docs, python_library, text_fingerprint
from ._tfds import is_prepared, tfds_arrays
from ._tfds_images import tfds_images, tfds_stream
from ._tfds_text import tfds_text
from ._tokens import reduce_vocabulary, word_pieces

__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "Split",
    "Stream",
    "View",
    "characters",
    "digits",
    "elevation",
    "fonts",
    "from_arrays",
    "glyphs",
    "is_available",
    "is_prepared",
    "load_all",
    "load_dataset",
    "patches",
    "photograph",
    "prepare",
    "python_code",
    "python_docs",
    "python_library",
    "reduce_vocabulary",
    "register_dataset",
    "sample_batch",
    "shapes",
    "stream",
    "text_fingerprint",
    "textures",
    "tfds_arrays",
    "tfds_images",
    "tfds_stream",
    "tfds_text",
    "word_pieces",
]
