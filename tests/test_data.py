"""Datasets that need no download, their splits and their batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, KEYS, assert_uniform_integers, differ, mapped

from l2o import tasks
from l2o.tasks import SPLITS


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
    raw = tasks.data._text._python_docs_bytes()
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
    monkeypatch.setattr(tasks.data._text, "_python_docs_bytes", lambda: b"abc")
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
