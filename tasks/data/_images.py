"""Images that need no download: digits, photographs, and drawn ones."""

import functools
from pathlib import Path

import numpy as np

from l2o.names import check_known

from ._base import Dataset, from_arrays

# Of a few sizes: a sampler of tasks goes through all of them.
_remembered = functools.lru_cache(maxsize=8)
MISSING = "the {} dataset needs {}: pip install 'l2o[train]'"


@_remembered
def digits(size: int = 8, grey: bool = True) -> Dataset:
    """1797 handwritten digits, 8x8 grey in [0, 1], ten classes (UCI; scikit-learn).

    x: (n, size, size, 1) float32, with three equal channels if not `grey`; y: (n,)
    int32. 1200 / 150 / 150 / 297 examples.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING.format("digits", "scikit-learn")) from error
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    return from_arrays(
        {"x": channels(resize(x, size), grey), "y": y.astype(np.int32)},
        (1200, 150, 150),
    )


@_remembered
def patches(size: int = 8, grey: bool = True) -> Dataset:
    """8480 patches of two photographs, 8x8 grey in [0, 1]; which region is the label.

    The photographs are scikit-learn's `china.jpg` and `flower.jpg`, cut without
    overlap. The ten classes are image (2) x horizontal band (5): can a classifier tell
    from one patch where it was taken?

    x: (n, size, size, 1 or 3) float32; y: (n,) int32. 70 / 10 / 10 / 10 percent; larger
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
        image = image.mean(-1, keepdims=True) if grey else image
        tiles, row = cut(image / 255, size)
        x.append(tiles)
        y.append(5 * i + row * 5 // (row.max() + 1))
    return from_arrays(
        {
            "x": np.concatenate(x).astype(np.float32),
            "y": np.concatenate(y).astype(np.int32),
        }
    )


@_remembered
def shapes(size: int = 8, grey: bool = True) -> Dataset:
    """6000 drawn figures of ten kinds, in noise.

    Disc, ring, square, frame, triangle, plus, cross, horizontal bars, vertical bars,
    checkerboard: at a random place, in a random size and two random tones, under
    Gaussian noise of deviation 0.05.

    x: (n, size, size, 1 or 3) float32 in [0, 1]; y: (n,) int32. 70 / 10 / 10 / 10
    percent.
    """
    rng = np.random.default_rng(1)
    y = rng.integers(0, 10, 6000)
    # In parts, because all ten figures are drawn of every example.
    parts = np.split(y, 12)
    x = np.concatenate([_figures(rng, part, size, 1 if grey else 3) for part in parts])
    return from_arrays({"x": x.astype(np.float32), "y": y.astype(np.int32)})


def _figures(
    rng: np.random.Generator, y: np.ndarray, size: int, count: int
) -> np.ndarray:
    """(n, size, size, count) in [0, 1]."""
    n = len(y)
    radius = rng.uniform(0.25, 0.45, (n, 1, 1))
    centre = rng.uniform(-0.5, 0.5, (2, n, 1, 1)) * (1 - 2 * radius)
    grid = (np.arange(size) + 0.5) / size - 0.5
    u = (grid[None, :, None] - centre[0]) / radius
    v = (grid[None, None, :] - centre[1]) / radius
    inside = np.maximum(abs(u), abs(v)) < 1
    length = np.hypot(u, v)
    figures = np.stack(
        [
            length < 1,
            (length < 1) & (length > 0.5),
            inside,
            inside & (np.maximum(abs(u), abs(v)) > 0.5),
            inside & (u > 2 * abs(v) - 1),
            inside & (np.minimum(abs(u), abs(v)) < 0.35),
            inside & (np.minimum(abs(u - v), abs(u + v)) < 0.45),
            inside & (np.mod(u, 1) < 0.5),
            inside & (np.mod(v, 1) < 0.5),
            inside & ((np.mod(u, 1) < 0.5) ^ (np.mod(v, 1) < 0.5)),
        ]
    )
    figure = figures[y, np.arange(n)][..., None]
    tones = rng.uniform(0, 1, (2, n, 1, 1, count))
    # Two tones too close would hide the figure.
    tones[1] = np.mod(tones[0] + rng.uniform(0.3, 0.7, tones[0].shape), 1)
    x = np.where(figure, tones[0], tones[1])
    return np.clip(x + 0.05 * rng.standard_normal(x.shape), 0, 1)


@_remembered
def textures(size: int = 8, grey: bool = True) -> Dataset:
    """6000 gratings in noise; which of ten orientations is the label.

    Sine waves of 0.1 to 0.35 periods per pixel and random phase, and a second, weaker
    one of random orientation; Gaussian noise of deviation 0.1.

    x: (n, size, size, 1 or 3) float32 in [0, 1]; y: (n,) int32. 70 / 10 / 10 / 10
    percent.
    """
    rng = np.random.default_rng(2)
    n, count = 6000, 1 if grey else 3
    y = rng.integers(0, 10, n)
    at = np.arange(size)

    def waves(angle):
        frequency = 2 * np.pi * rng.uniform(0.1, 0.35, (n, 1, 1))
        phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
        angle = angle[:, None, None]
        along = np.cos(angle) * at[:, None] + np.sin(angle) * at[None, :]
        return np.sin(frequency * along + phase)

    x = 0.5 + 0.3 * waves(np.pi * y / 10) + 0.1 * waves(rng.uniform(0, np.pi, n))
    x = x[..., None] * rng.uniform(0.6, 1, (n, 1, 1, count))
    x = np.clip(x + 0.1 * rng.standard_normal(x.shape), 0, 1)
    return from_arrays({"x": x.astype(np.float32), "y": y.astype(np.int32)})


@_remembered
def glyphs(size: int = 16, grey: bool = True) -> Dataset:
    """5000 letters A to J in the fonts that matplotlib brings, turned and shifted.

    Ten classes, as many letters of each; every example draws its font, size, place and
    a rotation of up to 15 degrees. Resembles notMNIST.

    x: (n, size, size, 1) float32 in [0, 1], with three equal channels if not `grey`;
    y: (n,) int32. 70 / 10 / 10 / 10 percent.
    """
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            MISSING.format("glyphs", "matplotlib and pillow")
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(3)
    fonts = {
        (name, points): ImageFont.truetype(folder / f"{name}.ttf", points)
        for name in _FONTS
        for points in (24, 28, 32)
    }
    x, y = [], np.arange(5000) % 10
    for letter in y:
        font = fonts[_FONTS[rng.integers(len(_FONTS))], int(rng.choice((24, 28, 32)))]
        image = Image.new("L", (48, 48))
        at = tuple(24 + rng.integers(-4, 5, 2))
        ImageDraw.Draw(image).text(at, "ABCDEFGHIJ"[letter], 255, font, anchor="mm")
        image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        # Antialiased, unlike `resize`: strokes are thinner than a pixel of the result.
        x.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
    images = (np.stack(x) / 255).astype(np.float32)[..., None]
    return from_arrays({"x": channels(images, grey), "y": y.astype(np.int32)})


_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip


@_remembered
def elevation(size: int = 8, grey: bool = True) -> Dataset:
    """2150 tiles of a map of heights (the Jacksboro fault; matplotlib's sample data).

    Cut without overlap from 344 x 403 points; every tile spans [0, 1]. The label is the
    horizontal fifth of the map. Larger tiles are fewer: 525 of 16x16.

    x: (n, size, size, 1) float32, with three equal channels if not `grey`; y: (n,)
    int32. 70 / 10 / 10 / 10 percent.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING.format("elevation", "matplotlib")) from error
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    with np.load(samples / "jacksboro_fault_dem.npz") as found:
        heights = found["elevation"].astype(np.float32)
    x, row = cut(heights[..., None], size)
    low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    x = (x - low) / np.maximum(high - low, 1)
    y = (row * 5 // (row.max() + 1)).astype(np.int32)
    return from_arrays({"x": channels(x, grey), "y": y})


def photograph(name: str = "china", size: int = 64) -> np.ndarray:
    """One photograph, (size, size, 3) in [0, 1]: "china", "flower" or "hopper".

    The largest central square; the first two are scikit-learn's, the third, a portrait
    of Grace Hopper, is matplotlib's.

    Raises:
      ValueError: another name.
    """
    check_known("photograph", name, ("china", "flower", "hopper"))
    try:
        from PIL import Image

        if name == "hopper":
            import matplotlib

            samples = Path(matplotlib.get_data_path()) / "sample_data"
            with Image.open(samples / "grace_hopper.jpg") as file:
                image = file.convert("RGB")
        else:
            from sklearn.datasets import load_sample_image

            image = Image.fromarray(load_sample_image(f"{name}.jpg"))
    except ImportError as error:
        raise ModuleNotFoundError(
            MISSING.format(name, "scikit-learn, matplotlib and pillow")
        ) from error
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((size, size), Image.Resampling.BOX)
    return (np.asarray(image) / 255).astype(np.float32)


def channels(x: np.ndarray, grey: bool) -> np.ndarray:
    """The mean over channels, one channel; or three, equal ones if there is one."""
    if grey:
        return x.mean(-1, keepdims=True)
    return np.repeat(x, 3, -1) if x.shape[-1] == 1 else x


def cut(image: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles (n, size, size, c) of an image (h, w, c), and the row of each."""
    rows, cols = image.shape[0] // size, image.shape[1] // size
    tiles = image[: rows * size, : cols * size].reshape(rows, size, cols, size, -1)
    tiles = tiles.swapaxes(1, 2).reshape(rows * cols, size, size, -1)
    return tiles, np.repeat(np.arange(rows), cols)


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
