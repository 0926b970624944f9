"""Letters and digits in many fonts."""

import numpy as np
import pytest

from l2o import tasks
from l2o.tasks.data import _characters


def _whole(dataset, name):
    return np.concatenate([np.asarray(split[name]) for split in dataset])


@pytest.fixture
def fewer(monkeypatch):
    monkeypatch.setattr(_characters, "_COUNT", 2000)
    return _characters.characters.__wrapped__, _characters.fonts.__wrapped__


def test_characters_and_fonts_are_labels_of_the_same_images(fewer):
    characters, fonts = (load(size=16) for load in fewer)
    again = fewer[0](size=16)
    for mine, other, same in zip(characters, fonts, again, strict=True):
        np.testing.assert_array_equal(mine["x"], other["x"])
        np.testing.assert_array_equal(mine["x"], same["x"])
        assert mine["x"].shape == (len(mine["y"]), 16, 16, 1)
        assert mine["x"].dtype == np.float32 and mine["y"].dtype == np.int32
    # Another numpy could draw otherwise from the same seed.
    assert characters.train["y"][:6].tolist() == [37, 27, 18, 43, 52, 24]
    assert fonts.train["y"][:6].tolist() == [19, 7, 5, 4, 11, 2]
    assert [len(split["y"]) for split in characters] == [1400, 200, 200, 200]
    x, which, font = (_whole(characters, "x"), *map(_whole, (characters, fonts), "yy"))
    assert x.min() == 0 and 0.9 < x.max() <= 1 and x.std() > 0.1
    assert set(which) == set(range(62)) and set(font) == set(range(20))
    assert abs(np.corrcoef(which, font)[0, 1]) < 0.1


def test_characters_look_like_their_labels(fewer):
    data = fewer[0](size=24)
    x, y = _whole(data, "x")[..., 0], _whole(data, "y")
    means = {c: x[y == i].mean(0) for i, c in enumerate(_characters.CHARACTERS)}
    # Ink in the middle of an I, none in that of an O; an L is heavier below.
    assert means["I"][12, 12] > 2 * means["O"][12, 12]
    assert means["L"][12:].sum() > 1.2 * means["L"][:12].sum()
    assert means["7"][:12].sum() > 1.2 * means["7"][12:].sum()


def test_bold_fonts_have_more_ink(fewer):
    data = fewer[1](size=24)
    ink, y = _whole(data, "x").mean((1, 2, 3)), _whole(data, "y")
    plain, bold = (
        ink[y == _characters.FONTS.index(f"DejaVuSans{x}")].mean()
        for x in ("", "-Bold")
    )
    assert bold > 1.15 * plain


def test_characters_come_in_colour_and_by_name(fewer):
    grey, colour = fewer[0](size=12), fewer[0](size=12, grey=False)
    assert colour.train["x"].shape[1:] == (12, 12, 3)
    np.testing.assert_allclose(colour.train["x"][..., 1:2], grey.train["x"], rtol=1e-6)
    assert tasks.DATASETS["characters"] is _characters.characters
    assert tasks.DATASETS["fonts"] is _characters.fonts
