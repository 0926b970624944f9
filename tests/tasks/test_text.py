"""Text and tokens: splits that share nothing, vocabularies that are learned."""

import doctest
import hashlib
import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o import tasks
from l2o.tasks import SPLITS, data
from l2o.tasks.data import _text, _tokens


def _digest(dataset):
    arrays = [np.asarray(split[name]) for split in dataset for name in "xy"]
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


def _text_of(split, at=slice(None)):
    return [bytes(row) for row in np.asarray(split["x"])[at].astype(np.uint8)]


def test_docs_in_bytes_are_a_shuffle_of_all_windows():
    # As they were before there were vocabularies.
    raw = np.frombuffer(_text.python_docs_bytes(), np.uint8).astype(np.int32)
    raw = np.where(raw < 128, raw, ord("?"))
    rows = raw[: len(raw) // 33 * 33].reshape(-1, 33)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    tenth = len(rows) // 10
    parts = np.split(rows, [len(rows) - 3 * tenth + i * tenth for i in range(3)])
    for split, part in zip(tasks.python_docs(), parts, strict=True):
        np.testing.assert_array_equal(split["x"], part[:, :-1])
        np.testing.assert_array_equal(split["y"], part[:, 1:])


def test_code_is_cut_in_contiguous_parts_of_every_module():
    dataset = data.python_code(64)
    modules = [x.decode(errors="replace") for x in _text.python_code_bytes()]
    assert len(modules) == 20 and 10**6 < sum(map(len, modules)) < 2 * 10**6
    sizes = np.array([len(split["x"]) for split in dataset])
    np.testing.assert_allclose(sizes / sizes.sum(), [0.7, 0.1, 0.1, 0.1], atol=0.01)
    rng = np.random.default_rng(3)
    for i, split in enumerate(dataset):
        low, high = ([0, 0.7, 0.8, 0.9][i], [0.7, 0.8, 0.9, 1][i])
        found = 0
        for window in _text_of(split, rng.choice(len(split["x"]), 100)):
            part = window.decode("ascii")
            for module in modules:
                at = module.find(part)
                if at < 0 or module.count(part) > 1:
                    continue
                found += 1
                # Where a module is not ASCII, bytes and characters differ a little.
                assert low - 0.01 <= at / len(module) <= high + 0.01
        assert found > 80  # the others hold a seam, or occur twice


def test_code_is_found_and_not_imported():
    code = (
        "import sys; from l2o.tasks.data import _text;"
        "before = set(sys.modules); _text.python_code_bytes();"
        "new = set(sys.modules) - before; assert not new & set(_text.MODULES), new;"
        "assert 'mailbox' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_library_is_what_python_code_has_not():
    texts = _text.python_library_bytes()
    assert len(texts) > 120 and 2 * 10**6 < sum(map(len, texts)) < 5 * 10**6
    assert not set(texts) & set(_text.python_code_bytes())
    assert sum(b"def bisect_right(" in x for x in texts) == 1
    # Cut and shuffled as `python_code` is.
    sizes = [len(split["x"]) for split in data.python_library(64)]
    np.testing.assert_allclose(np.divide(sizes, sum(sizes)), [0.7, 0.1, 0.1, 0.1], 0.02)


@pytest.mark.parametrize("name", ["python_docs", "python_code"])
def test_word_pieces_fill_their_vocabulary_and_leave_padding_alone(name):
    dataset = tasks.load_dataset(name, length=16, vocabulary=400)
    tokens = np.concatenate([np.asarray(split["x"]).ravel() for split in dataset])
    assert tokens.dtype == np.int32
    assert tokens.min() > _tokens.PAD and 390 < tokens.max() < 400
    for split in dataset:
        assert split["x"].shape[1] == 16
        np.testing.assert_array_equal(split["x"][:, 1:], split["y"][:, :-1])
    # Shorter than bytes are.
    in_bytes = tasks.load_dataset(name, length=16)
    assert len(dataset.train["x"]) < 0.6 * len(in_bytes.train["x"])


def test_word_pieces_are_learned_from_the_training_part_alone(monkeypatch):
    seen = []
    word_pieces = _text.word_pieces

    def spy(texts, vocabulary):
        seen.extend(texts)
        return word_pieces(texts, vocabulary)

    monkeypatch.setattr(_text, "word_pieces", spy)
    data.python_docs(11, 300)
    raw = _text.python_docs_bytes()
    assert seen == [raw[: len(raw) * 70 // 100].decode(errors="replace")]


def test_word_pieces_split_the_text_without_overlap(monkeypatch):
    words = [f"word{i}" for i in range(2000)]
    monkeypatch.setattr(_text, "python_docs_bytes", lambda: " ".join(words).encode())
    monkeypatch.setattr(_text, "word_pieces", lambda texts, size: _numbers)
    dataset = data.python_docs.__wrapped__(4, 257)
    numbers = [set(np.asarray(split["x"]).ravel().tolist()) for split in dataset]
    for i, a in enumerate(numbers):
        for b in numbers[i + 1 :]:
            assert max(a) < min(b)  # in the order of SPLITS
    assert sum(map(len, numbers)) > 1500


def _numbers(texts):
    # A word that was cut would be another number.
    return [
        np.array([int(w[4:]) for w in text.split()[1:-1] if w[:4] == "word"], np.int32)
        for text in texts
    ]


def test_word_pieces_are_the_same_in_another_process():
    code = """
import hashlib, numpy as np
from l2o.tasks import data
dataset = data.python_docs(8, 700)
arrays = [np.asarray(split[name]) for split in dataset for name in "xy"]
print(hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == _digest(data.python_docs(8, 700))


def test_word_pieces_encode_what_they_have_not_seen():
    encode = data.word_pieces(["abab abab"] * 10, 260)
    known, unknown, empty, marked = encode(["abab abab", "ü\n€", "", "<pad>"])
    assert len(known) == 2 and known.max() > 256
    assert len(unknown) == 2 + 1 + 3  # bytes in UTF-8
    assert len(empty) == 0
    assert len(marked) == 5 and marked.min() > 0  # no padding, although it says so


@pytest.mark.parametrize("vocabulary", [0, 128, 256])
def test_a_vocabulary_has_room_for_every_byte(vocabulary):
    with pytest.raises(ValueError, match=f"vocabulary of {vocabulary} has no room"):
        data.python_docs(8, vocabulary)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'l2o\[data\]'"):
        data.python_docs(9, 300)


def test_documents_are_cropped_or_padded():
    documents = [np.arange(1, 4), np.arange(1, 10), np.zeros(0, int)]
    padded = _tokens.padded(documents, 4)
    np.testing.assert_array_equal(
        padded["x"], [[1, 2, 3, 0], [1, 2, 3, 4], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        padded["y"], [[2, 3, 0, 0], [2, 3, 4, 5], [0, 0, 0, 0]]
    )


def test_a_reduced_vocabulary_is_in_range_and_keeps_what_fits():
    tokens = np.arange(1000)
    for size in (2, 3, 7, 100, 999):
        reduced = data.reduce_vocabulary(tokens, size)
        assert reduced.max() == size - 1 and reduced.min() == 0
        np.testing.assert_array_equal(reduced[:size], tokens[:size])
        assert np.all(reduced[size:] > 0)  # padding is nothing else
        jitted = jax.jit(data.reduce_vocabulary, static_argnums=1)
        np.testing.assert_array_equal(jitted(jnp.asarray(tokens), size), reduced)
    with pytest.raises(ValueError, match="not size=1"):
        data.reduce_vocabulary(tokens, 1)


def test_fingerprints_are_of_the_text(monkeypatch):
    assert tasks.text_fingerprint() == tasks.text_fingerprint("python_docs")
    code = tasks.text_fingerprint("python_code")
    assert len(code) == 12 and code != tasks.text_fingerprint()
    monkeypatch.setattr(_text, "python_code_bytes", lambda: [b"abc"])
    assert tasks.text_fingerprint("python_code") == "ba7816bf8f01"  # FIPS 180-4's
    library = tasks.text_fingerprint("python_library")
    assert len({library, code, tasks.text_fingerprint()}) == 3
    with pytest.raises(ValueError, match="'lm1b'; known: python_docs, python_code"):
        tasks.text_fingerprint("lm1b")


def test_texts_are_known_by_name():
    assert tasks.load_dataset("python_code", length=64) is data.python_code(length=64)
    for name in ("python_docs", "python_code", "python_library", "lm1b", "wikipedia"):
        parameters = data.DATASETS[name]
        parameters = getattr(parameters, "__wrapped__", parameters)
        assert parameters.__code__.co_varnames[:2] == ("length", "vocabulary")
        assert parameters.__defaults__ == (32, None)
    assert [len(split) for split in data.python_docs(11, 300)] == [2] * len(SPLITS)


@pytest.mark.parametrize("name", ["_tokens"])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"l2o.tasks.data.{name}"))
    assert result.failed == 0 and result.attempted > 2
