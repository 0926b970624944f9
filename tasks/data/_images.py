"""Images that need no download: digits, photographs, and drawn ones."""

import functools

import numpy as np

from ._base import Dataset, from_arrays

MISSING = "the {} dataset needs {}: pip install 'l2o[train]'"


@functools.cache
def digits(size: int = 8) -> Dataset:
    """1797 handwritten digits, 8x8 grey in [0, 1], ten classes (UCI; scikit-learn).

    x: (n, size, size, 1) float32; y: (n,) int32. 1200 / 150 / 150 / 297 examples.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING.format("digits", "scikit-learn")) from error
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    return from_arrays(
        {"x": resize(x, size), "y": y.astype(np.int32)}, (1200, 150, 150)
    )


@functools.cache
def patches(size: int = 8) -> Dataset:
    """8480 patches of two photographs, 8x8 grey in [0, 1]; which region is the label.

    The photographs are scikit-learn's `china.jpg` and `flower.jpg`, cut without
    overlap. The ten classes are image (2) x horizontal band (5): can a classifier tell
    from one patch where it was taken?

    x: (n, size, size, 1) float32; y: (n,) int32. 70 / 10 / 10 / 10 percent; larger
    patches are fewer: 2080 of 16x16, 520 of 32x32.
    """
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
    except ImportError as error:
        raise ModuleNotFoundError(
            MISSING.format("patches", "scikit-learn and pillow")
        ) from error
    x, y = [], []
    for i, image in enumerate(images):
        tiles, row = cut(image.mean(-1) / 255, size)
        x.append(tiles[..., None])
        y.append(5 * i + row * 5 // (row.max() + 1))
    return from_arrays(
        {
            "x": np.concatenate(x).astype(np.float32),
            "y": np.concatenate(y).astype(np.int32),
        }
    )


def cut(image: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles (n, size, size) of a grey image, and the row of tiles each is from."""
    rows, cols = image.shape[0] // size, image.shape[1] // size
    tiles = image[: rows * size, : cols * size].reshape(rows, size, cols, size)
    return tiles.swapaxes(1, 2).reshape(-1, size, size), np.repeat(
        np.arange(rows), cols
    )


def resize(x: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, without antialiasing, as google/learned_optimization resizes.

    Args:
      x: (n, height, width, channels).
      size: height and width of the result.
    """
    for axis in (1, 2):
        old = x.shape[axis]
        if old == size:
            continue
        # Pixel centres, clamped at the border.
        at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (at - low).astype(x.dtype)
        shape = [1] * x.ndim
        shape[axis] = size
        weight = weight.reshape(shape)
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x
