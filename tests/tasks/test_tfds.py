"""Datasets of tensorflow-datasets: its own builders, with drawn examples, read back."""

import doctest
import importlib
import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, read_arrays
from PIL import Image

from l2o import tasks
from l2o.tasks import SPLITS, data
from l2o.tasks.data import _tfds, _tfds_images

tfds = pytest.importorskip("tensorflow_datasets")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (230, 28, 28, 1), np.uint8)  # 200 of train, 30 of test
COLOUR = RNG.integers(0, 256, (60, 32, 32, 3), np.uint8)
FOOD = [
    RNG.integers(0, 256, (*RNG.integers(20, 40, 2), 3), np.uint8) for _ in range(40)
]
SENTENCES = [f"Sentence {i} says {i * i}, not more." for i in range(330)]


def _png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    file.seek(0)
    return file


def _images(images, classes, **more):
    return [
        {"image": _png(x), "label": i % classes, **more} for i, x in enumerate(images)
    ]


def _build(root, name, splits, **options):
    """What TFDS itself would prepare, were these the examples it had downloaded."""

    class Builder(tfds.builder_cls(name), skip_registration=True):
        def _split_generators(self, *args, **kwargs):
            return {split: iter(enumerate(x)) for split, x in splits.items()}

    Builder.name = name
    Builder(data_dir=root, file_format="array_record", **options).download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    grey = _images(GREY, 10)
    _build(root, "mnist", {"train": grey[:200], "test": grey[200:]})
    colour = _images(COLOUR, 10, id="")
    _build(root, "cifar10", {"train": colour[:50], "test": colour[50:]})
    food = _images(FOOD, 101)
    _build(root, "food101", {"train": food[:30], "validation": food[30:]})
    small = _images(COLOUR[:, ::2, ::2], 1000)
    _build(
        root,
        "imagenet_resized",
        {"train": small[:50], "validation": small[50:]},
        config="16x16",
    )
    texts = [{"text": x} for x in SENTENCES]
    _build(root, "lm1b", {"train": texts[:300], "test": texts[300:]})
    return root


@pytest.fixture
def prepared(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    return root


def _sizes(dataset):
    return [len(next(iter(split.values()))) for split in dataset]


def _rows(split):
    return {row.tobytes() for row in np.asarray(split["x"])}


@pytest.mark.parametrize(
    "name, images, sizes",
    [
        ("mnist", GREY, [160, 20, 20, 30]),
        ("cifar10", COLOUR, [40, 5, 5, 10]),
        ("imagenet_resized/16x16", COLOUR[:, ::2, ::2], [40, 5, 5, 10]),
    ],
)
def test_images_are_the_pixels_that_were_prepared(root, name, images, sizes):
    dataset = data.tfds_images(name, data_dir=root)
    assert _sizes(dataset) == sizes
    # TFDS shuffles as it writes: the same images, in another order.
    expected = [x.tobytes() for x in images.astype(np.float32) / 255]
    cut = sum(sizes[:3])
    in_train = [_rows(split) for split in dataset[:3]]
    assert set.union(*in_train) == set(expected[:cut])
    assert sum(map(len, in_train)) == cut  # disjoint
    assert _rows(dataset.test) == set(expected[cut:])
    for split in dataset:
        assert split["x"].dtype == jnp.float32 and split["y"].dtype == jnp.int32
        labels = {x: i for i, x in enumerate(expected)}
        classes = 1000 if "imagenet" in name else 10
        for x, y in zip(np.asarray(split["x"]), split["y"]):
            assert labels[x.tobytes()] % classes == y


def test_by_name_images_are_grey_and_of_the_size_asked_for(prepared):
    native = tasks.load_dataset("mnist")
    assert native.train["x"].shape == (160, 28, 28, 1)
    small = tasks.load_dataset("mnist", size=8, grey=True)
    assert small.test["x"].shape == (30, 8, 8, 1)
    # 28 to 8 pixels, bilinearly without antialiasing: pixel 0 is at 1.25 of the old.
    x = np.asarray(native.test["x"][..., 0])
    corner = (
        9 * x[:, 1, 1] + 3 * x[:, 1, 2] + 3 * x[:, 2, 1] + x[:, 2, 2]
    ) / 16  # weights (3/4, 1/4) of pixels 1 and 2, along both axes
    np.testing.assert_allclose(small.test["x"][:, 0, 0, 0], corner, rtol=1e-5)
    np.testing.assert_array_equal(small.test["y"], native.test["y"])

    colour = tasks.load_dataset("cifar10", grey=False)
    assert colour.train["x"].shape == (40, 32, 32, 3)
    grey = tasks.load_dataset("cifar10")
    assert grey.train["x"].shape == (40, 32, 32, 1)
    mean = np.asarray(colour.train["x"]).mean(-1, keepdims=True)
    np.testing.assert_allclose(grey.train["x"], mean, rtol=1e-6)
    assert tasks.load_dataset("imagenet16").test["x"].shape == (10, 16, 16, 1)

    three = tasks.load_dataset("mnist", grey=False).train[
        "x"
    ]  # to be mixed with cifar10's
    assert three.shape == (160, 28, 28, 3)
    for channel in range(3):
        np.testing.assert_array_equal(three[..., channel], native.train["x"][..., 0])


def test_images_of_many_shapes_need_a_size(root):
    food = data.tfds_images("food101", size=16, data_dir=root)
    assert _sizes(food) == [24, 3, 3, 10]
    assert food.train["x"].shape == (24, 16, 16, 3)
    expected = {
        data._images.resize(x[None].astype(np.float32) / 255, 16)[0].tobytes()
        for x in FOOD[30:]
    }
    assert _rows(food.test) == expected
    with pytest.raises(ValueError, match="food101 differ in shape: give a size"):
        data.tfds_images("food101", data_dir=root)


def test_all_image_loaders_have_one_signature():
    for name in _tfds_images.TFDS_IMAGES:
        load = data.DATASETS[name]
        assert load.__name__ == name
        assert load.__code__.co_varnames[:2] == ("size", "grey")
        assert load.__defaults__[1] is True


def test_a_dataset_is_read_once(prepared):
    assert tasks.load_dataset("mnist", size=8) is tasks.load_dataset("mnist", size=8)


def test_a_family_trains_on_them(prepared):
    family = tasks.image_mlp(["mnist"], (8,), batch_size=16)
    task = family.task(family.sample(KEY), family.data)
    params, _ = task.init(KEY)
    loss, _ = task.loss(params, (), KEY, task.batch(KEY, "train"))
    assert np.isfinite(loss)
    with pytest.raises(ValueError, match=r"batch of 31 .*'test' with 30 examples"):
        tasks.sample_batch(tasks.load_dataset("mnist"), "test", KEY, 31)


def test_text_is_cropped_or_padded_documents(root):
    dataset = data.tfds_text("lm1b", 24, data_dir=root)
    assert _sizes(dataset) == [294, 3, 3, 30]
    tokens = [
        np.pad(np.frombuffer(x.encode(), np.uint8)[:25], (0, max(0, 25 - len(x))))
        for x in SENTENCES
    ]
    whole = lambda s: np.c_[np.asarray(s["x"]), np.asarray(s["y"])[:, -1:]]
    for split in dataset:
        assert split["x"].dtype == jnp.int32
        np.testing.assert_array_equal(split["x"][:, 1:], split["y"][:, :-1])
    read = np.concatenate([whole(split) for split in dataset[:3]])
    assert sorted(map(bytes, read.astype(np.uint8))) == sorted(
        map(bytes, np.stack(tokens[:300]).astype(np.uint8))
    )
    longer = data.tfds_text("lm1b", 60, data_dir=root).test
    assert np.all(np.asarray(longer["y"])[:, -1] == 0)


def test_text_in_word_pieces_of_so_many_documents(root):
    dataset = data.tfds_text("lm1b", 16, 300, documents=50, data_dir=root)
    assert _sizes(dataset) == [50, 3, 3, 5]
    assert 256 < int(dataset.train["x"].max()) < 300
    bytes_ = data.tfds_text("lm1b", 16, documents=50, data_dir=root)
    padding = lambda d: int((np.asarray(d.train["x"]) == 0).sum())
    assert padding(dataset) > padding(bytes_) == 0


def test_text_without_a_test_split(tmp_path):
    texts = [{"text": f"article {i}"} for i in range(200)]

    class Wikipedia(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
        def _split_generators(self, dl_manager):
            return {"train": iter(enumerate(texts))}

    for config in ("20230601.en", "20230601.fr"):
        Wikipedia(
            name="wikipedia",
            version="1.0.0",
            config=config,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            split_datasets={},
            data_dir=tmp_path,
            file_format="array_record",
            disable_shuffling=True,
        ).download_and_prepare()
    with pytest.raises(ValueError, match="name one: wikipedia/20230601.en, wiki"):
        data.tfds_text("wikipedia", 8, data_dir=tmp_path)
    dataset = data.tfds_text("wikipedia/20230601.en", 12, data_dir=tmp_path)
    assert _sizes(dataset) == [194, 2, 2, 2]
    first = [
        bytes(np.asarray(split["x"])[0, 8:11].astype(np.uint8)) for split in dataset
    ]
    assert first == [b"6\0\0", b"0\0\0", b"2\0\0", b"4\0\0"]


def test_any_features_under_any_names(root):
    dataset = data.tfds_arrays("cifar10", {"image": "image"}, data_dir=root)
    assert dataset.train["image"].dtype == jnp.uint8
    expected = data.tfds_images("cifar10", data_dir=root).train["x"]
    np.testing.assert_array_equal(
        np.asarray(dataset.train["image"], np.float32) / 255, expected
    )
    splits = dict.fromkeys(SPLITS, "test") | {"train": "train[:3]"}
    few = data.tfds_arrays("cifar10", {"y": "label"}, splits, data_dir=root)
    assert _sizes(few) == [3, 10, 10, 10]
    with pytest.raises(ValueError, match="no feature 'depth'; it has .*image"):
        data.tfds_arrays("cifar10", {"x": "depth"}, data_dir=root)
    with pytest.raises(ValueError, match=r"'train\[:0\]' of cifar10 is empty"):
        empty = {**splits, "train": "train[:0]"}
        data.tfds_arrays("cifar10", {"y": "label"}, empty, data_dir=root)
    with pytest.raises(ValueError, match="lm1b has no feature 'image', 'label'; it"):
        # TFDS calls the text of lm1b both its input and its label.
        data.tfds_arrays("lm1b", {"x": "image", "y": "label"}, data_dir=root)


def test_a_stream_of_images(root):
    photos = data.tfds_stream("mnist", 64, 14, True, data_dir=root)
    assert _sizes(photos.window) == [64, 20, 20, 30]
    dataset = data.tfds_images("mnist", 14, True, data_dir=root)
    chunks = photos.chunks(0)
    seen = [next(chunks).train for _ in range(5)]
    first_epoch = np.concatenate([x["x"] for x in seen[:2]])
    assert len({x.tobytes() for x in first_epoch}) == 128  # none twice
    assert set.union(*map(_rows, seen)) == _rows(dataset.train)
    np.testing.assert_array_equal(photos.window.test["x"], dataset.test["x"])


def test_what_is_absent_is_not_downloaded_but_told_how_to_prepare(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    command = f"tfds build mnist --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(FileNotFoundError, match="l2o downloads nothing.*" + command):
        tasks.load_dataset("mnist")
    with pytest.raises(FileNotFoundError, match="tfds build imagenet_resized/32x32 "):
        tasks.load_dataset("imagenet32")
    with pytest.raises(FileNotFoundError, match="tfds build wikipedia/20230601.en "):
        tasks.load_dataset("wikipedia")
    with pytest.raises(FileNotFoundError, match="tfds build lm1b "):
        tasks.load_dataset("lm1b", length=8)
    assert not data.is_available("mnist") and not data.is_available("wikipedia")
    assert data.is_available("digits") and data.is_available("python_code")
    assert list(tmp_path.iterdir()) == []


def test_is_prepared_looks_at_folders_only(root, prepared, tmp_path):
    assert data.is_available("mnist") and data.is_available("imagenet16")
    assert not data.is_available("imagenet32")
    assert data.is_prepared("imagenet_resized/16x16", root)
    assert not data.is_prepared("imagenet_resized/32x32", root)
    assert not data.is_prepared("mnist", tmp_path)
    code = (
        "import sys; from l2o.tasks.data import is_prepared;"
        f"assert is_prepared('mnist', {str(root)!r});"
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("written", ["tfrecord", "parquet", None])
def test_other_file_formats_are_refused_with_the_remedy(tmp_path, written):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    info = {} if written is None else {"fileFormat": written}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert not data.is_prepared("mnist", tmp_path)
    with pytest.raises(
        ValueError,
        match=f"holds {written or 'tfrecord'} files.*tfds build mnist "
        "--file_format=array_record .*--overwrite",
    ):
        data.tfds_images("mnist", data_dir=tmp_path)


def test_the_newest_version_is_read(tmp_path):
    for version in ("9.1.0", "10.0.0", "10.0.0.incomplete", "11.0.0"):
        folder = tmp_path / "mnist" / version
        folder.mkdir(parents=True)
        if version != "11.0.0":
            (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert _tfds.find("mnist", tmp_path).name == "10.0.0"


def test_what_is_too_large_is_to_be_streamed(root, monkeypatch):
    monkeypatch.setattr(_tfds, "MOST_BYTES", 230 * 10 * 10 * 4 - 1)
    data.tfds_images("mnist", 9, data_dir=root)
    with pytest.raises(ValueError, match="choose a smaller size, or stream .*tfds_str"):
        data.tfds_images("mnist", 10, data_dir=root)
    with pytest.raises(ValueError, match="mnist would take"):
        data.tfds_arrays("mnist", {"x": "image"}, data_dir=root)


@pytest.mark.parametrize(
    "module, call",
    [
        ("tensorflow_datasets", lambda at: data.tfds_images("mnist", 5, data_dir=at)),
        ("tensorflow_datasets", lambda at: data.prepare("digits", at)),
        ("grain", lambda at: data.tfds_stream("mnist", 5, data_dir=at)),
        ("tokenizers", lambda at: data.tfds_text("lm1b", 5, 300, data_dir=at)),
    ],
)
def test_a_missing_package_is_named(root, module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'l2o\[data\]'"):
        call(root)


def test_our_own_images_come_back_in_the_same_splits(tmp_path):
    folder = data.prepare("digits", tmp_path)
    assert folder == tmp_path / "digits" / "1.0.0"
    ours, theirs = tasks.digits(), data.tfds_images("digits", data_dir=tmp_path)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a["x"], b["x"], atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(a["y"], b["y"])
    with pytest.raises(ValueError, match="cannot prepare 'mnist'; known: digits, pat"):
        data.prepare("mnist", tmp_path)


def test_our_own_texts_come_back_in_disjoint_complete_splits(tmp_path):
    data.prepare("python_docs", tmp_path)
    dataset = data.tfds_text("python_docs", 40, documents=None, data_dir=tmp_path)
    raw = data._text.python_docs_bytes()
    paragraphs = [x for x in raw.split(b"\n\n") if x.strip()]
    assert sum(_sizes(dataset)) == len(paragraphs) > 2000
    inner, outer, train, test = (
        dataset.inner_valid,
        dataset.outer_valid,
        dataset.train,
        dataset.test,
    )
    rows = np.concatenate([np.asarray(x["x"]) for x in (inner, outer, train, test)])
    for row, text in zip(rows, paragraphs, strict=True):
        assert bytes(row.astype(np.uint8)) == text[:40].ljust(40, b"\0")


def test_a_fresh_process_reads_the_same_without_tensorflow(root, tmp_path):
    data.prepare("patches", tmp_path)
    code = f"""
import sys
import numpy as np
from l2o.tasks import data, load_dataset
mnist = load_dataset("mnist", size=12)
patches = data.tfds_images("patches", data_dir={str(tmp_path)!r})
np.savez("read.npz", mnist=mnist.train["x"], patches=patches.test["x"])
assert "tensorflow" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        timeout=60,
        env={**os.environ, "TFDS_DATA_DIR": str(root)},
    )
    read = read_arrays("read.npz")
    mnist = data.tfds_images("mnist", 12, True, data_dir=root)
    np.testing.assert_array_equal(read["mnist"], mnist.train["x"])
    np.testing.assert_allclose(
        read["patches"], tasks.patches().test["x"], atol=0.5 / 255 + 1e-6
    )
    assert "tensorflow" not in sys.modules


def test_a_dataset_first_read_inside_jit_can_be_used_outside(root):
    read = lambda: data.tfds_images("mnist", 6, data_dir=root).train["x"]
    inside = jax.jit(lambda: read().sum())()
    np.testing.assert_allclose(read().sum(), inside, rtol=1e-6)


@pytest.mark.parametrize("name", ["_tfds", "_tfds_images", "_tfds_text", "_prepare"])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"l2o.tasks.data.{name}"))
    assert result.failed == 0 and result.attempted > 2
