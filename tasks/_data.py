"""In-memory datasets that need no download, in four disjoint splits."""

import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._base import SPLITS, Split

_SHUFFLE_SEED = 0  # splits are a fact of the dataset, not of a run
_MISSING = "the {} dataset needs {}: pip install 'l2o[train]'"


class Dataset(NamedTuple):
    """Four disjoint splits; each a dict of arrays with a leading example axis."""

    train: dict[str, Any]
    inner_valid: dict[str, Any]
    outer_valid: dict[str, Any]
    test: dict[str, Any]


def sample_batch(
    dataset: Dataset, split: Split, key: jax.Array, batch_size: int
) -> dict[str, jax.Array]:
    """`batch_size` examples of a split, drawn uniformly with replacement.

    Raises:
      ValueError: unknown split, or a batch larger than the split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    arrays = getattr(dataset, split)
    size = len(next(iter(arrays.values())))
    if batch_size > size:
        raise ValueError(
            f"a batch of {batch_size} is larger than the split {split!r} with {size} "
            "examples: choose a smaller batch_size"
        )
    index = jax.random.randint(key, (batch_size,), 0, size)
    return {name: array[index] for name, array in arrays.items()}


def from_arrays(
    arrays: dict[str, np.ndarray],
    sizes: tuple[int, int, int] | None = None,
) -> Dataset:
    """Shuffles examples once (always the same way) and cuts four splits.

    Args:
      arrays: each with the same leading example axis.
      sizes: examples of train, inner_valid and outer_valid; test is the rest. By
        default 70, 10, 10 and 10 percent.

    Raises:
      ValueError: arrays of different lengths, or a split that would be empty.

    Example:
      >>> import numpy as np
      >>> from l2o.tasks import from_arrays
      >>> data = from_arrays({"x": np.zeros((100, 2)), "y": np.zeros(100, int)})
      >>> data.train["x"].shape
      (70, 2)
    """
    lengths = {name: len(x) for name, x in arrays.items()}
    total = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays have different numbers of examples: {lengths}")
    if sizes is None:
        tenth = total // 10
        sizes = (total - 3 * tenth, tenth, tenth)
    if min(sizes) <= 0 or sum(sizes) >= total:
        raise ValueError(
            f"cannot cut train/inner_valid/outer_valid of {sizes} and a test split "
            f"from {total} examples"
        )
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(total)
    parts = np.split(order, np.cumsum(sizes))
    # Inside a jit these would be tracers, which the caches below would then keep.
    with jax.ensure_compile_time_eval():
        return Dataset(
            *(
                {name: jnp.asarray(x[part]) for name, x in arrays.items()}
                for part in parts
            )
        )


@functools.cache
def digits() -> Dataset:
    """1797 handwritten digits, 8x8 grey in [0, 1], ten classes (UCI; scikit-learn).

    x: (n, 8, 8, 1) float32; y: (n,) int32. 1200 / 150 / 150 / 297 examples.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING.format("digits", "scikit-learn")) from error
    x, y = load_digits(return_X_y=True)
    return from_arrays(
        {
            "x": (x / 16).reshape(-1, 8, 8, 1).astype(np.float32),
            "y": y.astype(np.int32),
        },
        (1200, 150, 150),
    )


@functools.cache
def patches() -> Dataset:
    """8480 patches of two photographs, 8x8 grey in [0, 1]; which region is the label.

    The photographs are scikit-learn's `china.jpg` and `flower.jpg`, cut without
    overlap. The ten classes are image (2) x horizontal band (5): can a classifier tell
    from one patch where it was taken?

    x: (n, 8, 8, 1) float32; y: (n,) int32. 70 / 10 / 10 / 10 percent.
    """
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
    except ImportError as error:
        raise ModuleNotFoundError(
            _MISSING.format("patches", "scikit-learn and pillow")
        ) from error
    x, y = [], []
    for i, image in enumerate(images):
        grey = image.mean(-1) / 255
        rows, cols = grey.shape[0] // 8, grey.shape[1] // 8
        tiles = grey[: rows * 8, : cols * 8].reshape(rows, 8, cols, 8).swapaxes(1, 2)
        x.append(tiles.reshape(-1, 8, 8, 1))
        band = np.arange(rows) * 5 // rows
        y.append(np.repeat(5 * i + band, cols))
    return from_arrays(
        {
            "x": np.concatenate(x).astype(np.float32),
            "y": np.concatenate(y).astype(np.int32),
        }
    )


@functools.cache
def python_docs(length: int = 32) -> Dataset:
    """English text that CPython ships (the language reference), as byte windows.

    Windows of `length + 1` bytes without overlap; x is all but the last byte, y all but
    the first; bytes above 127 become `?`, so the vocabulary has 128 entries. The text
    differs between Python versions: see `text_fingerprint`.

    x, y: (n, length) int32. 70 / 10 / 10 / 10 percent.
    """
    raw = np.frombuffer(_python_docs_bytes(), np.uint8).astype(np.int32)
    raw = np.where(raw < 128, raw, ord("?"))
    count = len(raw) // (length + 1)
    windows = raw[: count * (length + 1)].reshape(count, length + 1)
    return from_arrays({"x": windows[:, :-1], "y": windows[:, 1:]})


def text_fingerprint() -> str:
    """First 12 digits of the SHA-256 of `python_docs`' text, for reports."""
    return hashlib.sha256(_python_docs_bytes()).hexdigest()[:12]


def _python_docs_bytes() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()
