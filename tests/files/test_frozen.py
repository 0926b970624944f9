"""Frozen optimizers: what is written, what is read back, and what is refused."""

import hashlib
import json
import os
import runpy
import struct
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o

OPTIMIZER = l2o.small_fc(hidden_size=3, hidden_layers=1, momentum_decays=(0.9,))
WEIGHTS, CARD = "model.safetensors", "config.json"


def _theta(optimizer, seed=0):
    """Nothing zero, so that a lost or permuted array shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.01 * rng.standard_normal(x.shape), x.dtype),
        optimizer.init_theta(jax.random.key(seed)),
    )


def _assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def folder(tmp_path):
    return l2o.save(tmp_path / "frozen", OPTIMIZER, _theta(OPTIMIZER))


def _edit_card(folder, edit):
    card = json.loads((folder / CARD).read_text())
    edit(card)
    (folder / CARD).write_text(json.dumps(card))


def _replace_weights(folder, weights):
    """Other weights with the checksum that goes with them."""
    (folder / WEIGHTS).write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    _edit_card(folder, lambda card: card["weights"].update(sha256=digest))


# Round trips.


@pytest.mark.parametrize("name", l2o.factories())
def test_round_trip_is_exact(tmp_path, name):
    optimizer = l2o.make(name)
    theta = _theta(optimizer)
    loaded, loaded_theta = l2o.load_unbound(l2o.save(tmp_path, optimizer, theta))
    assert (loaded.name, loaded.arguments) == (optimizer.name, optimizer.arguments)
    _assert_identical(loaded_theta, theta)


def test_loaded_optimizer_updates_like_the_saved_one(folder):
    params = {"b": jnp.ones(2), "w": jnp.full((3, 2), 0.5)}
    saved, loaded = OPTIMIZER.bind(_theta(OPTIMIZER)), l2o.load(folder)
    expected = saved.update(params, saved.init(params), params, value=0.5)
    actual = loaded.update(params, loaded.init(params), params, value=0.5)
    _assert_identical(actual, expected)


SCRIPT = """
import json
import sys

import jax
import jax.numpy as jnp
import optax

import l2o

tx = l2o.load(sys.argv[1])
x = jax.random.normal(jax.random.key(0), (8, 3))
params = {"b": jnp.zeros(1), "w": jnp.ones((3, 1))}
state = tx.init(params)


def loss_fn(params):
    return jnp.mean((x @ params["w"] + params["b"] - 1) ** 2)


@jax.jit
def train_step(params, state):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state


for _ in range(5):
    params, state = train_step(params, state)
print(json.dumps(jax.tree.map(lambda x: x.tolist(), params)))
"""


def test_a_fresh_process_trains_bit_for_bit_alike(
    folder, tmp_path, monkeypatch, capsys
):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), str(folder)]
    stranger = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert stranger.returncode == 0, stranger.stderr
    monkeypatch.setattr(sys, "argv", ["train.py", str(folder)])
    runpy.run_path(str(script))
    params = json.loads(stranger.stdout)
    assert params == json.loads(capsys.readouterr().out)
    assert params["w"] != [[1.0]] * 3


def test_float64_mode_loads_the_same_theta(folder):
    with jax.enable_x64(True):
        _, theta = l2o.load_unbound(folder)
    _assert_identical(theta, _theta(OPTIMIZER))


def test_arrays_of_any_memory_layout_are_saved(tmp_path):
    theta = jax.tree.map(lambda x: np.asfortranarray(x), _theta(OPTIMIZER))
    assert not theta["nn"]["w0"].flags.c_contiguous
    _, loaded = l2o.load_unbound(l2o.save(tmp_path, OPTIMIZER, theta))
    _assert_identical(loaded, theta)


def test_saving_again_replaces(folder):
    other = _theta(OPTIMIZER, seed=1)
    l2o.save(folder, OPTIMIZER, other, card={"run": 2})
    _assert_identical(l2o.load_unbound(folder)[1], other)
    assert l2o.read_card(folder)["card"] == {"run": 2}
    assert sorted(os.listdir(folder)) == [CARD, WEIGHTS]


# What is in the folder.


def test_folder_holds_two_files(folder):
    assert sorted(os.listdir(folder)) == [CARD, WEIGHTS]


def test_weights_are_plain_numbers(folder):
    """Read by hand after the format's definition: no code is in the file."""
    content = (folder / WEIGHTS).read_bytes()
    (header_size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + header_size])
    data = content[8 + header_size :]
    theta = _theta(OPTIMIZER)
    expected = {f"nn/{name}": x for name, x in theta.pop("nn").items()} | theta
    assert set(header) - {"__metadata__"} == set(expected)
    for name, x in expected.items():
        start, end = header[name]["data_offsets"]
        assert (header[name]["dtype"], header[name]["shape"]) == ("F32", list(x.shape))
        np.testing.assert_array_equal(np.frombuffer(data[start:end], "<f4"), x.ravel())
    assert sum(4 * x.size for x in expected.values()) == len(data)


def test_card_says_what_it_is(tmp_path):
    card = {"tasks": ["digits"], "outer_steps": 100}
    folder = l2o.save(tmp_path, OPTIMIZER, _theta(OPTIMIZER), card=card)
    content = json.loads((folder / CARD).read_text())
    assert l2o.read_card(folder) == content
    version = content.pop("l2o_version")
    assert isinstance(version, str) and version
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    leaves = jax.tree.leaves(_theta(OPTIMIZER))
    assert content == {
        "format": "l2o",
        "format_version": 1,
        "optimizer": {"name": "small_fc", "arguments": OPTIMIZER.arguments},
        "weights": {"file": WEIGHTS, "sha256": digest},
        "meta_parameters": sum(x.size for x in leaves),
        "card": card,
    }


# What cannot be saved, without harm to what is there.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_theta_that_is_not_finite_is_refused(folder, bad):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    theta = _theta(OPTIMIZER, seed=1)
    theta["nn"]["b1"] = theta["nn"]["b1"].at[0].set(bad)
    with pytest.raises(ValueError, match=r"theta is not finite in nn/b1; it was not"):
        l2o.save(folder, OPTIMIZER, theta)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _without(theta):
    del theta["nn"]["b0"]


def _unknown(theta):
    theta["nn"]["w9"] = jnp.zeros(2)


def _transposed(theta):
    theta["nn"]["w1"] = theta["nn"]["w1"].T


def _half(theta):
    theta["nn"]["b0"] = theta["nn"]["b0"].astype(jnp.float16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without, r"lacks nn/b0"),
        (_unknown, r"has unknown nn/w9"),
        (_transposed, r"nn/w1 is \(\(2, 3\), 'float32'\), expected \(\(3, 2\), 'fl"),
        (_half, r"nn/b0 is \(\(3,\), 'float16'\), expected \(\(3,\), 'float32'\)"),
    ],
)
def test_theta_of_another_tree_is_refused(tmp_path, spoil, message):
    theta = _theta(OPTIMIZER)
    spoil(theta)
    with pytest.raises(ValueError, match=rf"theta does not fit small_fc.*{message}"):
        l2o.save(tmp_path / "frozen", OPTIMIZER, theta)
    assert not (tmp_path / "frozen").exists()


def test_theta_that_could_not_be_loaded_is_refused(tmp_path):
    optimizer = l2o.LearnedOptimizer(
        lambda key: {"log_lr": jnp.bfloat16(-3)}, OPTIMIZER.bind
    )
    with pytest.raises(ValueError, match=r"log_lr of theta .* cast it to float32"):
        l2o.save(tmp_path / "frozen", optimizer, optimizer.init_theta(None))
    assert not (tmp_path / "frozen").exists()


@pytest.mark.parametrize("value", [np.nan, object()], ids=["nan", "object"])
def test_card_that_is_not_json_is_refused(tmp_path, value):
    with pytest.raises((TypeError, ValueError), match=r"JSON"):
        l2o.save(
            tmp_path / "frozen", OPTIMIZER, _theta(OPTIMIZER), card={"loss": value}
        )
    assert not (tmp_path / "frozen").exists()


# What cannot be loaded, and what the message says about it.


def test_missing_folder_lists_what_is_shipped(tmp_path):
    names = ", ".join(l2o.shipped())
    with pytest.raises(
        FileNotFoundError, match=rf"'no_such_optimizer'; known: {names}"
    ):
        l2o.load("no_such_optimizer")
    with pytest.raises(
        FileNotFoundError, match=r"nowhere' is neither a file nor a fol"
    ):
        l2o.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: a frozen optimi"):
        l2o.load(folder)


def _flip_a_byte(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "spoil", [_flip_a_byte, lambda x: x[: len(x) // 2], lambda x: b""]
)
def test_corrupted_weights_are_refused(folder, spoil):
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(spoil(weights))
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not match the check"
    ):
        l2o.load(folder)


def test_file_that_is_not_safetensors_is_refused(folder):
    weights = (folder / WEIGHTS).read_bytes()
    _replace_weights(folder, weights[: len(weights) // 2])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is truncated or not a saf"
    ):
        l2o.load(folder)


def test_weights_of_another_optimizer_are_refused(folder, tmp_path):
    other = l2o.mlp(hidden_size=3, hidden_layers=1)
    saved = l2o.save(tmp_path / "other", other, _theta(other))
    _replace_weights(folder, (saved / WEIGHTS).read_bytes())
    message = (
        r"model\.safetensors does not fit small_fc\(.*'hidden_size': 3.*\): "
        r"lacks adafactor_decays; .*nn/w0 is \(\(19, 3\), 'float32'\), expected"
    )
    with pytest.raises(ValueError, match=message):
        l2o.load(folder)


def test_card_of_another_size_is_refused(folder):
    _edit_card(
        folder, lambda card: card["optimizer"]["arguments"].update(hidden_size=4)
    )
    with pytest.raises(ValueError, match=r"nn/b0 is \(\(3,\), .*expected \(\(4,\)"):
        l2o.load(folder)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_card_that_is_not_json_is_named(folder, text):
    (folder / CARD).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is not (valid JSON|UTF-8)"):
        l2o.load(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "onnx"}'])
def test_card_of_another_format_is_named(folder, text):
    (folder / CARD).write_text(text)
    with pytest.raises(ValueError, match=r'not an l2o card: it lacks "format": "l2o"'):
        l2o.load(folder)


@pytest.mark.parametrize("version", [2, "2", None, True, 0])
def test_newer_format_asks_for_an_upgrade(folder, version):
    _edit_card(folder, lambda card: card.update(format_version=version))
    with pytest.raises(
        ValueError, match=rf"format version {version!r}, .* up to 1: upgrade l2o"
    ):
        l2o.load(folder)


@pytest.mark.parametrize(
    ("spoil", "lacks"),
    [
        (lambda card: card.pop("weights"), r"weights\.sha256"),
        (lambda card: card["weights"].update(sha256=3), r"weights\.sha256"),
        (lambda card: card.pop("optimizer"), r"optimizer\.name"),
        (lambda card: card.update(optimizer="small_fc"), r"optimizer\.name"),
        (lambda card: card["optimizer"].pop("name"), r"optimizer\.name"),
        (lambda card: card["optimizer"].update(arguments=[4]), r"optimizer\.argumen"),
        (lambda card: card.update(card=[]), r"card"),
        (lambda card: card.pop("meta_parameters"), r"meta_parameters"),
    ],
)
def test_incomplete_card_is_named(folder, spoil, lacks):
    _edit_card(folder, spoil)
    with pytest.raises(ValueError, match=rf"config\.json lacks {lacks}"):
        l2o.load(folder)


def test_unknown_architecture_in_the_card_is_named(folder):
    _edit_card(folder, lambda card: card["optimizer"].update(name="velo9"))
    with pytest.raises(
        ValueError, match=r"unknown learned optimizer 'velo9'; known: .*small_fc"
    ):
        l2o.load(folder)


def test_an_architecture_has_no_weights_of_its_own():
    with pytest.raises(FileNotFoundError, match=r"'velo' is an architecture: `l2o.ma"):
        l2o.load("velo")


def test_unknown_argument_in_the_card_is_named(folder):
    _edit_card(folder, lambda card: card["optimizer"]["arguments"].update(width=4))
    with pytest.raises(
        ValueError, match=r"small_fc has no argument 'width'; known: step_mult"
    ):
        l2o.load(folder)


def test_ill_typed_argument_in_the_card_is_named(folder):
    wrong = {"momentum_decays": 0.9}
    _edit_card(folder, lambda card: card["optimizer"]["arguments"].update(wrong))
    with pytest.raises(
        ValueError, match=r"config.json: small_fc has an ill-typed argument"
    ):
        l2o.load(folder)


# An optimizer of one's own.


class Coefficients(NamedTuple):
    log_lr: jax.Array


def _own():
    def bind(theta, *, num_steps=None):
        del num_steps
        return optax.with_extra_args_support(optax.sgd(jnp.exp(theta[0].log_lr)))

    return l2o.LearnedOptimizer(lambda key: (Coefficients(jnp.float32(-2)),), bind)


def test_own_optimizer_is_loaded_with_its_architecture(tmp_path):
    theta = (Coefficients(jnp.float32(-1.5)),)
    folder = l2o.save(tmp_path, _own(), theta)
    with pytest.raises(ValueError, match=r"give its arch.* `l2o\.load\(folder, optimi"):
        l2o.load(folder)
    _assert_identical(l2o.load_unbound(folder, optimizer=_own())[1], theta)
    tx = l2o.load(folder, optimizer=_own())
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=0.5)
    np.testing.assert_allclose(updates, -np.exp(-1.5), rtol=1e-6)


def test_keys_with_a_slash_are_refused(tmp_path):
    optimizer = l2o.LearnedOptimizer(lambda key: {"a/b": jnp.zeros(2)}, OPTIMIZER.bind)
    with pytest.raises(ValueError, match=r"a key of theta contains a slash: \['a/b'\]"):
        l2o.save(tmp_path, optimizer, {"a/b": jnp.zeros(2)})


def test_given_architecture_must_fit_the_weights(folder):
    with pytest.raises(ValueError, match=r"does not fit this optimizer\(\{\}\): lacks"):
        l2o.load(folder, optimizer=_own())


# What is not needed to use one.

HEAVY = {
    "flax",
    "haiku",
    "matplotlib",
    "orbax",
    "rich",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tyro",
}


@pytest.mark.parametrize("module", ["l2o", "l2o.tasks"])
def test_import_is_light(module, tmp_path):
    code = f"import sys, json, {module}; print(json.dumps(list(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert HEAVY & set(json.loads(process.stdout)) == set()
