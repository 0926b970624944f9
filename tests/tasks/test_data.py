"""Datasets that need no download, their splits and their batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, KEYS, assert_uniform_integers, differ, mapped

from l2o import tasks
from l2o.tasks import DATASETS, SPLITS
from l2o.tasks.data import photograph
from l2o.tasks.data._images import resize


def _whole(dataset, name):
    return np.concatenate([np.asarray(split[name]) for split in dataset])


def test_from_arrays_puts_every_example_into_exactly_one_split():
    data = tasks.from_arrays({"index": np.arange(103)})
    assert [len(split["index"]) for split in data] == [73, 10, 10, 10]
    assert sorted(_whole(data, "index")) == list(range(103))


def test_from_arrays_keeps_the_arrays_of_an_example_together():
    data = tasks.from_arrays(
        {"x": np.arange(40.0).reshape(20, 2), "y": np.arange(20)}, (5, 4, 3)
    )
    assert [len(split["y"]) for split in data] == [5, 4, 3, 8]
    for split in data:
        np.testing.assert_array_equal(split["x"][:, 0], 2 * split["y"])


def test_from_arrays_refuses_arrays_of_different_lengths():
    with pytest.raises(ValueError, match=r"different numbers .*'x': 20, 'y': 19"):
        tasks.from_arrays({"x": np.zeros((20, 2)), "y": np.zeros(19)})


@pytest.mark.parametrize(
    "sizes", [(10, 5, 5), (20, 5, 5), (0, 5, 5), (10, -1, 5), None]
)
def test_from_arrays_refuses_an_empty_split(sizes):
    total = 9 if sizes is None else 20
    with pytest.raises(ValueError, match=f"cannot cut .* from {total} examples"):
        tasks.from_arrays({"x": np.zeros(total)}, sizes)


def test_digits_are_scikit_learns_in_a_recorded_order():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    data = tasks.digits()
    assert [len(split["y"]) for split in data] == [1200, 150, 150, 297]
    np.testing.assert_array_equal(_whole(data, "y"), labels[order])
    np.testing.assert_array_equal(
        _whole(data, "x"), (images[order] / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    )
    # Another numpy could shuffle otherwise from the same seed, and nothing else here
    # would notice that its test split holds what used to be trained on.
    assert order[:6].tolist() == [360, 1773, 1482, 600, 850, 196]


def test_patches_are_tiles_of_their_photograph_and_band():
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    data = tasks.patches()
    assert [len(split["y"]) for split in data] == [5936, 848, 848, 848]
    x, y = _whole(data, "x"), _whole(data, "y")
    for position, index in enumerate(np.random.default_rng(0).permutation(8480)[:50]):
        image, tile = divmod(index, 53 * 80)
        row, column = divmod(tile, 80)
        square = images[image][8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_allclose(
            x[position, :, :, 0], square.mean(-1) / 255, rtol=1e-6
        )
        assert y[position] == 5 * image + 5 * row // 53


@pytest.mark.parametrize("dataset", [tasks.digits, tasks.patches])
def test_images_are_grey_in_the_unit_range_with_ten_classes(dataset):
    data = dataset()
    for split in data:
        assert split["x"].shape == (len(split["y"]), 8, 8, 1)
        assert (split["x"].dtype, split["y"].dtype) == (jnp.float32, jnp.int32)
        assert set(np.unique(split["y"])) == set(range(10))
    x = _whole(data, "x")
    assert x.min() >= 0 and 0.9 < x.max() <= 1


def test_python_docs_are_shifted_windows_of_the_text():
    raw = tasks.data._text.python_docs_bytes()
    ascii_only = bytes(byte if byte < 128 else ord("?") for byte in raw)
    data = tasks.python_docs(7)
    x, y = _whole(data, "x"), _whole(data, "y")
    assert x.dtype == y.dtype == np.int32
    assert len(x) == len(raw) // 8 and len(x) > 10_000
    assert x.min() >= 0 and x.max() < 128
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    windows = [bytes(row) for row in np.c_[x, y[:, -1:]].astype(np.uint8)]
    assert sorted(windows) == sorted(
        ascii_only[i : i + 8] for i in range(0, len(raw) - 7, 8)
    )
    assert tasks.python_docs().train["x"].shape[1:] == (32,)


def test_text_fingerprint_is_of_the_text(monkeypatch):
    fingerprint = tasks.text_fingerprint()
    assert len(fingerprint) == 12 and int(fingerprint, 16) >= 0
    monkeypatch.setattr(tasks.data._text, "python_docs_bytes", lambda: b"abc")
    assert tasks.text_fingerprint() == "ba7816bf8f01"  # FIPS 180-4's example


def test_a_dataset_first_used_inside_jit_can_be_used_outside():
    tasks.digits.cache_clear()
    inside = jax.jit(lambda: tasks.digits().train["x"].sum())()
    np.testing.assert_allclose(tasks.digits().train["x"].sum(), inside, rtol=1e-6)


TINY = tasks.from_arrays({"x": 3.0 * np.arange(30), "y": np.arange(30)}, (12, 6, 5))


def test_sample_batch_draws_whole_examples_of_its_split_only():
    for split in SPLITS:
        draws = [tasks.sample_batch(TINY, split, key, 5) for key in KEYS[:20]]
        x, y = (np.stack([draw[name] for draw in draws]) for name in "xy")
        assert x.shape == y.shape == (20, 5)
        np.testing.assert_array_equal(x, 3 * y)
        np.testing.assert_array_equal(
            np.unique(y), np.sort(getattr(TINY, split)["y"]), split
        )


def test_sample_batch_is_uniform_and_with_replacement():
    y = mapped(lambda key: tasks.sample_batch(TINY, "train", key, 12)["y"])(KEYS)
    ranks = np.searchsorted(np.sort(TINY.train["y"]), np.asarray(y).ravel())
    assert_uniform_integers(ranks, 12)
    assert any(len(set(batch)) < 12 for batch in np.asarray(y[:3]).tolist())


def test_a_batch_depends_on_the_key_only():
    def draw(key, data):
        return tasks.sample_batch(data, "test", key, 7)["y"]

    eager = draw(KEY, TINY)
    np.testing.assert_array_equal(eager, draw(KEY, TINY))
    np.testing.assert_array_equal(eager, jax.jit(draw)(KEY, TINY))
    batched = mapped(draw, (0, None))(jnp.stack([KEYS[0], KEY]), TINY)
    np.testing.assert_array_equal(eager, batched[1])
    assert differ(batched[0], batched[1])


def test_sample_batch_names_the_known_splits():
    with pytest.raises(ValueError, match=r"'valid'; known: " + ", ".join(SPLITS)):
        tasks.sample_batch(TINY, "valid", KEY, 2)


def test_sample_batch_refuses_a_batch_larger_than_the_split():
    with pytest.raises(ValueError, match=r"batch of 7 .*'inner_valid' with 6 examples"):
        tasks.sample_batch(TINY, "inner_valid", KEY, 7)
    assert len(tasks.sample_batch(TINY, "inner_valid", KEY, 6)["y"]) == 6


OFFLINE = {
    # name: examples, shape of x, classes (None for numbers)
    "digits": (1797, (8, 8, 1), 10),
    "patches": (8480, (8, 8, 1), 10),
    "shapes": (6000, (8, 8, 1), 10),
    "textures": (6000, (8, 8, 1), 10),
    "glyphs": (5000, (16, 16, 1), 10),
    "elevation": (2150, (8, 8, 1), 5),
    "breast_cancer": (569, (30,), 2),
    "wine": (178, (13,), 3),
    "iris": (150, (4,), 3),
    "diabetes": (442, (10,), None),
    "signals": (5000, (40, 1), 10),
    "graphs": (1000, (16, 20), 2),
}


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_dataset_is_what_its_docstring_says(name):
    count, shape, classes = OFFLINE[name]
    data = tasks.load_dataset(name)
    x, y = _whole(data, "x"), _whole(data, "y")
    assert x.shape == (count, *shape) and x.dtype == np.float32
    assert np.all(np.isfinite(x))
    if len(shape) == 3:
        assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.1
    if classes is None:
        assert y.dtype == np.float32
        train = np.asarray(data.train["y"])
        assert abs(train.mean()) < 1e-5 and abs(train.std() - 1) < 1e-4
    else:
        assert y.dtype == np.int32
        for split in data:  # every class is in every split
            assert set(np.unique(split["y"])) == set(range(classes))
    if len(shape) == 1:
        train = np.asarray(data.train["x"])
        np.testing.assert_allclose(train.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(train.std(0), 1, atol=1e-3)
    # The first loader that is called is the one that counts: drawn ones always draw
    # the same.
    DATASETS[name].cache_clear()
    np.testing.assert_array_equal(_whole(tasks.load_dataset(name), "x"), x)


@pytest.mark.parametrize("name", ["digits", "patches", "shapes", "glyphs", "elevation"])
def test_images_come_in_any_size_and_in_colour(name):
    grey, colour = (
        tasks.load_dataset(name, size=12),
        tasks.load_dataset(name, size=12, grey=False),
    )
    assert grey.train["x"].shape[1:] == (12, 12, 1)
    assert colour.train["x"].shape[1:] == (12, 12, 3)
    np.testing.assert_array_equal(grey.train["y"], colour.train["y"])
    if name in ("digits", "patches", "glyphs", "elevation"):
        mean = np.asarray(colour.train["x"]).mean(-1, keepdims=True)
        np.testing.assert_allclose(grey.train["x"], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["shapes", "textures", "glyphs", "signals"])
def test_drawn_classes_can_be_told_apart(name):
    from sklearn.ensemble import RandomForestClassifier

    data = tasks.load_dataset(name)
    forest = RandomForestClassifier(40, random_state=0)
    x = np.asarray(data.train["x"]).reshape(len(data.train["y"]), -1)
    forest.fit(x, data.train["y"])
    x = np.asarray(data.test["x"]).reshape(len(data.test["y"]), -1)
    accuracy = forest.score(x, data.test["y"])
    assert 0.25 < accuracy < 0.999


def test_graph_adjacency_is_normalised_and_symmetric():
    x = _whole(tasks.load_dataset("graphs"), "x")
    adjacency = x[:, :, :16]
    np.testing.assert_allclose(adjacency, adjacency.swapaxes(1, 2), atol=1e-6)
    # D^(-1/2) A D^(-1/2) has the eigenvalue 1, and none above.
    top = np.linalg.eigvalsh(adjacency[:20].astype(np.float64))[:, -1]
    np.testing.assert_allclose(top, 1, atol=1e-5)
    y = _whole(tasks.load_dataset("graphs"), "y")
    same = y[:, :, None] == y[:, None]
    edges = (adjacency > 0) & ~np.eye(16, dtype=bool)
    assert abs(edges[same & ~np.eye(16, dtype=bool)].mean() - 0.5) < 0.01
    assert abs(edges[~same].mean() - 0.1) < 0.01
    # The marks say which community is which.
    for mark in (0, 1):
        assert np.all(y[x[:, :, 17 + mark] == 1] == mark)


def test_resize_is_bilinear_between_pixel_centres():
    from PIL import Image

    x = np.random.default_rng(0).uniform(size=(2, 9, 7, 1)).astype(np.float32)
    ours = resize(x, 13)
    for image, mine in zip(x[..., 0], ours[..., 0]):
        # Enlarging, Pillow's antialiasing does nothing.
        pillow = Image.fromarray(image).resize((13, 13), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(mine, pillow, atol=1e-6)
    np.testing.assert_array_equal(resize(x[:, :7], 7), x[:, :7])


def test_photographs_are_square_and_named():
    for name in ("china", "flower", "hopper"):
        image = photograph(name, 24)
        assert image.shape == (24, 24, 3) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.1
    with pytest.raises(ValueError, match="unknown photograph 'x'; known: china"):
        photograph("x")


def test_load_names_the_known_datasets_and_passes_datasets_through():
    with pytest.raises(ValueError, match="unknown dataset 'minst'; known: digits"):
        tasks.load_dataset("minst")
    assert tasks.load_dataset(TINY) is TINY


@pytest.mark.parametrize(
    ("name", "geometry", "match"),
    [
        ("digits", {"sizes": 4}, "digits has no option sizes; known: size, grey"),
        ("wine", {"size": 4}, "wine has no option size; known: none"),
    ],
)
def test_a_geometry_that_a_dataset_does_not_have(name, geometry, match):
    with pytest.raises(ValueError, match=match):
        tasks.load_dataset(name, **geometry)


@pytest.mark.parametrize(
    ("datasets", "match"), [("digits", "not 'digits'"), ((), "none at all")]
)
@pytest.mark.parametrize("kind", ["autoencoder", "vae", "language_model"])
def test_datasets_are_several(kind, datasets, match):
    with pytest.raises(ValueError, match=match):
        tasks.make_family(kind, datasets=datasets)


def test_tables_may_be_loaded_inside_a_program():
    DATASETS["iris"].cache_clear()
    jax.jit(lambda: tasks.load_dataset("iris").train["x"].sum())()
    assert np.isfinite(tasks.load_dataset("iris").train["x"]).all()


def test_images_of_few_sizes_are_remembered():
    first = tasks.load_dataset("digits", size=4)
    assert tasks.load_dataset("digits", size=4) is first
    for size in range(5, 14):
        tasks.load_dataset("digits", size=size)
    assert tasks.load_dataset("digits", size=4) is not first
