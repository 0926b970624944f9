"""Letters and digits in many fonts: images for models of a million parameters."""

import functools
import string
from pathlib import Path

import numpy as np

from ._base import Dataset, from_arrays
from ._images import MISSING, channels

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralBolIta", "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
_COUNT, _CANVAS, _POINTS = 40_000, 48, (28, 32, 36)


@functools.lru_cache(maxsize=8)
def characters(size: int = 16, grey: bool = True) -> Dataset:
    """40 000 letters and digits in 20 fonts that matplotlib brings, turned and shifted.

    62 classes: 0 to 9, A to Z, a to z. Every example draws its character, font, size,
    place, a rotation of up to 10 degrees and its tone, on black.

    x: (n, size, size, 1) float32 in [0, 1], with three equal channels if not `grey`;
    y: (n,) int32. 70 / 10 / 10 / 10 percent.
    """
    x, y, _ = _drawn(size)
    return from_arrays({"x": channels(x, grey), "y": y})


@functools.lru_cache(maxsize=8)
def fonts(size: int = 24, grey: bool = True) -> Dataset:
    """The images of `characters`; the label is which of the 20 fonts each is in.

    x, y and splits as there.
    """
    x, _, y = _drawn(size)
    return from_arrays({"x": channels(x, grey), "y": y})


def _drawn(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, size, size, 1), which character, which font."""
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            MISSING.format("characters", "matplotlib and pillow")
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    loaded = [
        [ImageFont.truetype(folder / f"{name}.ttf", points) for points in _POINTS]
        for name in FONTS
    ]
    rng = np.random.default_rng(4)
    which = rng.integers(0, len(CHARACTERS), _COUNT)
    font = rng.integers(0, len(FONTS), _COUNT)
    points = rng.integers(0, len(_POINTS), _COUNT)
    middle = _CANVAS // 2 + rng.integers(-2, 3, (_COUNT, 2))
    angle = rng.uniform(-10, 10, _COUNT)
    ink = np.empty((_COUNT, size, size), np.uint8)
    for i in range(_COUNT):
        image = Image.new("L", (_CANVAS, _CANVAS))
        draw, text = ImageDraw.Draw(image), CHARACTERS[which[i]]
        at = (int(middle[i, 0]), int(middle[i, 1]))
        draw.text(at, text, 255, loaded[font[i]][points[i]], anchor="mm")
        image = image.rotate(angle[i], Image.Resampling.BILINEAR)
        ink[i] = np.asarray(image.resize((size, size), Image.Resampling.BOX))
    tone = rng.uniform(0.5, 1, _COUNT).astype(np.float32)[:, None, None]
    x = tone * (ink.astype(np.float32) / 255)
    return x[..., None], which.astype(np.int32), font.astype(np.int32)
