"""Files that are refused, and what the messages say; no file runs code."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import flax
import flax.serialization
import jax
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    CONFIG,
    PYLO,
    SMALL,
    WEIGHTS,
    assert_same,
    save_pylo,
    some_theta,
    write_flax,
)

import l2o
from l2o.files._trees import to_tree

# What is refused, and what the message says about it.


class Creates:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_refused_and_not_run(state, tmp_path, protocol):
    content = pickle.dumps({"nn": Creates(tmp_path / "ran")}, protocol)
    state.parent.mkdir()
    state.write_bytes(content)
    message = r"theta.state is a pickle, which can run any code.*flax.serialization.to_"
    if protocol < 2:  # which have no mark at their beginning
        message = r"theta.state is truncated or not flax's msgpack.*pickles are not re"
    for source in (state, state.parent):
        with pytest.raises(ValueError, match=message):
            l2o.load(source)
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists()


def test_files_of_pytorch_are_refused_and_not_run(tmp_path):
    content = pickle.dumps(Creates(tmp_path / "ran"), 2)
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(ValueError, match=r"w.pt is a PyTorch .* model.safetensors"):
        l2o.load(tmp_path / "w.pt")
    (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"old.pt is a pickle"):
        l2o.load(tmp_path / "old.pt")
    assert not (tmp_path / "ran").exists()


def test_file_that_was_cut_off_is_refused(state):
    write_flax(state, to_tree(some_theta(SMALL["celo"]), SMALL["celo"]))
    content = state.read_bytes()
    for length in range(0, len(content), 61):
        state.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"theta.state is truncated.*copy it aga"):
            l2o.load(state, num_steps=1)
    state.write_bytes(content + b"\x00")
    with pytest.raises(ValueError, match=r"theta.state is truncated or not flax's"):
        l2o.load(state, num_steps=1)


def _array(shape, dtype, raw):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, raw)))


CHUNKED = {"__msgpack_chunked_array__": True, "shape": {"0": 3}}


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (msgpack.ExtType(5, b"x"), r"extension of type 5, expected arrays alone"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), r"extension of type 2, expe"),
        (_array((1,), "O", b"12345678"), r"an array of type O, expected numbers"),
        (_array((1,), "V4", b"1234"), r"an array of type V4, expected numbers"),
        (_array((1,), "S4", b"1234"), r"an array of type S4, expected numbers"),
        (_array((1,), "complex64", bytes(8)), r"type complex64, expected numbers"),
        (_array((1,), "nonsense", b"1234"), r"nonsense"),
        (
            _array((3,), "float32", b"1234"),
            r"array of shape \[3\] and type float32 in 4 b",
        ),
        (
            _array((3,), "float32", b"123"),
            r"of shape \[3\] and type float32 in 3 bytes",
        ),
        (msgpack.ExtType(1, b"\x93"), r"is truncated or not flax's msgpack"),
        (CHUNKED, r"an array in chunks that lacks some"),
        (
            {**CHUNKED, "chunks": {"0": _array((1,), "float32", b"1234")}},
            r"chunks of 1 numbers, expect",
        ),
        (msgpack.Timestamp(1), r"per_layer_lr is a Timestamp"),
        ([0.1], r"per_layer_lr is a list"),
    ],
)
def test_malformed_leaf_is_refused(state, leaf, message):
    tree = flax.serialization.to_state_dict(
        to_tree(some_theta(SMALL["nn_adam"]), SMALL["nn_adam"])
    )
    arrays = jax.tree.map(lambda x: _array(x.shape, x.dtype.name, x.tobytes()), tree)
    state.parent.mkdir()
    state.write_bytes(msgpack.packb(arrays))
    l2o.load(state)
    state.write_bytes(msgpack.packb({**arrays, "per_layer_lr": leaf}))
    with pytest.raises(ValueError, match=rf"theta.state .*{message}"):
        l2o.load(state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"theta.state is truncated or not flax's msgpack"),
        (b"\x80", r"theta.state holds no theta that l2o knows \(its keys are \)"),
        (msgpack.packb([1, 2]), r"theta.state holds a list, expected a map such as fl"),
        (msgpack.packb({(1,): 2}), r"theta.state is truncated or not|keys are "),
        (msgpack.packb({"nn": 1, "momentum_decays": 2}), r"keys are momentum_decays, "),
        (
            msgpack.packb({"opt": {"step": 1}, "model": 2}),
            r"its keys are model, opt\): name its architecture, `l2o.load\(path, optim",
        ),
    ],
)
def test_file_of_something_else_is_refused(state, content, message):
    state.parent.mkdir()
    state.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        l2o.load(state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "velo",
            r"does not fit velo\(lstm_hidden_size=7.* is \(18, 7\), expected \(30",
        ),
        ("mulo", r"theta.state holds a theta of celo, not of mulo"),
        ("celo_adam", r"theta.state holds a theta of celo, not of celo_adam"),
        ("lstm", r"theta.state holds a theta of celo, not of lstm"),
        ("velo9", r"unknown learned optimizer 'velo9'; known: celo, "),
    ],
)
def test_wrong_name_for_a_file_is_refused(state, name, message):
    write_flax(state, to_tree(some_theta(SMALL["celo"]), SMALL["celo"]))
    with pytest.raises(ValueError, match=message):
        l2o.load(state, optimizer=name, num_steps=1)


def test_own_optimizer_has_its_own_arguments(state, tmp_path):
    optimizer = SMALL["celo"]
    theta = some_theta(optimizer)
    write_flax(state, to_tree(theta, optimizer))
    own = l2o.celo(**{**optimizer.arguments, "train_phase": 1})
    assert_same(l2o.load_unbound(state, optimizer=own), own, theta)
    for folder in (state, l2o.save(tmp_path / "own", optimizer, theta)):
        message = r"train_phase, exp_mult: give arguments to your optimizer, not to lo"
        with pytest.raises(ValueError, match=message):
            l2o.load(folder, optimizer=own, train_phase=2, exp_mult=1.0)
    nameless = l2o.LearnedOptimizer(own.init_theta, own.bind)
    with pytest.raises(ValueError, match=r"only l2o's factories read: name one, `l2o"):
        l2o.load(state, optimizer=nameless)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"theta.state' is neither a file nor a"
    ):
        l2o.load(tmp_path / "theta.state")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"config.json is missing: a frozen opt"
    ):
        l2o.load(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_file_of_a_folder_asks_for_the_folder(tmp_path, name):
    save_pylo(tmp_path, PYLO["elo"])
    with pytest.raises(ValueError, match=rf"{name} is part of a folder: give the fol"):
        l2o.load(tmp_path / name)


def test_card_of_a_published_file_is_not_one(state):
    write_flax(state, {})
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        l2o.read_card(state)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_safetensors_that_were_cut_off_are_refused(tmp_path, cut):
    save_pylo(tmp_path, PYLO["elo"])
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:cut])
    with pytest.raises(
        ValueError, match=r"model.safetensors is truncated or not a saf"
    ):
        l2o.load(tmp_path, optimizer="elo")


def test_types_that_numpy_lacks_are_refused(tmp_path):
    save_pylo(tmp_path, PYLO["elo"])
    array = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}
    header = json.dumps({"network.output.bias": array}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=r"arrays of type 'BF16'.* again as float32"):
        l2o.load(tmp_path, optimizer="elo")


@pytest.mark.parametrize("config", ["{}", "[]", "[1]"])
def test_weights_of_neither_are_refused(tmp_path, config):
    safetensors.numpy.save_file({"layer": np.zeros(2)}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(config)
    message = (
        r"config.json is not an l2o card: .* PyLO's networks MetaMLP.*first is 'la"
    )
    with pytest.raises(ValueError, match=message):
        l2o.load(tmp_path)


def test_saved_folder_counts_before_files_of_others(tmp_path):
    """Such as the file that it was imported from."""
    write_flax(
        tmp_path / "theta.state", to_tree(some_theta(SMALL["celo"]), SMALL["celo"])
    )
    theta = some_theta(SMALL["mlp"])
    l2o.save(tmp_path, SMALL["mlp"], theta)
    assert_same(l2o.load_unbound(tmp_path), SMALL["mlp"], theta)
    (tmp_path / CONFIG).unlink()
    assert l2o.load_unbound(tmp_path)[0].name == "celo"
