"""What weight files claim is held against what they are, or refused by name."""

import hashlib
import inspect
import json
import re

import flax.serialization
import jax
import msgpack
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from every_weight_file import HUGE, KINDS, LEAKS, OWN, with_theta, write
from weight_files import CONFIG, SMALL, WEIGHTS, some_theta

import l2o
from l2o.files._reading import Malformed, reading
from l2o.files._recorded import check_recorded, extent
from l2o.files._trees import to_tree


def _bound(value):
    return f"run_train.lopt = @HyperV2()\nHyperV2.param_inits = {value}".encode()


def _claims(folder, **claims):
    card = json.loads((folder / CONFIG).read_text())
    card["optimizer"]["arguments"].update(claims)
    (folder / CONFIG).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("small_fc", {"hidden_size": HUGE}),
        ("small_fc", {"hidden_layers": HUGE}),
        ("small_fc", {"hidden_layers": 5000}),
        ("small_fc", {"momentum_decays": [0.9] * 10**5}),
        ("celo2", {"ns_iters": HUGE}),
        ("celo2", {"features": ["g"] * 10**5}),
        ("celo2", {"regex_1d": "(" * 20_000}),
        ("velo", {"lstm_hidden_size": HUGE}),
        ("velo", {"param_inits": HUGE}),
        ("lstm", {"hidden_layers": HUGE}),
        ("l2o_scale", {"level_sizes": [3, HUGE, 5]}),
        ("wrapped", {"optimizer": {"name": "mlp", "arguments": {"hidden_size": HUGE}}}),
    ],
)
def test_sizes_are_held_against_the_weights_before_anything_is_built(
    name, claim, tmp_path, monkeypatch
):
    folder = l2o.save(tmp_path / "w", *with_theta(OWN[name]))
    _claims(folder, **claim)
    monkeypatch.setattr("l2o.files._frozen.make", None)
    with pytest.raises(
        ValueError, match=rf"^{folder / CONFIG}: .* (but the weights a|is)"
    ):
        l2o.load(folder, num_steps=3)


@pytest.mark.parametrize(
    ("kind", "name", "file", "content"),
    [
        ("own", "small_fc", CONFIG, b"[" * 10**5),
        ("own", "small_fc", CONFIG, b'{"a":' * 10**5),
        ("own", "small_fc", CONFIG, b" " * 5 * 10**6),
        ("own", "small_fc", CONFIG, b'{"format": ' + b"9" * 5000 + b"}"),
        ("own", "small_fc", CONFIG, b'{"format": NaN}'),
        ("own", "small_fc", CONFIG, b"\xff"),
        ("own", "small_fc", WEIGHTS, b""),
        ("pylo", "mulo", WEIGHTS, b"\xff" * 100),
        ("pylo", "mulo", WEIGHTS, (10**5).to_bytes(8, "little") + b"[" * 10**5),
        ("pylo", "mulo", "decays.json", b'{"rms_decays": ' + b"[" * 10**5),
        ("pylo", "mulo", "decays.json", b'{"rms_decays": [1' + b"0" * 400 + b"]}"),
        ("pylo", "mulo", "decays.json", b"\xff"),
        ("pylo", "celo2", CONFIG, b'{"activation": {}}'),
        ("flax", "celo", "theta.state", b"\xdd\xff\xff\xff\xff"),
        ("flax", "celo", "theta.state", b"\x81\xa1a" * 10**5),
        ("flax", "celo", "theta.state", msgpack.packb({"0": [], "1": "", "2": 0})),
        (
            "flax",
            "celo",
            "theta.state",
            msgpack.packb({"name": 1, "fields": 2, "values": 3}),
        ),
        (
            "flax",
            "celo",
            "theta.state",
            msgpack.packb({"params": 1, "gen_id": 2, "step": 3}),
        ),
        ("gin", "HyperV2", "config.gin", _bound("(" * 10**5)),
        ("gin", "HyperV2", "config.gin", _bound("-" * 10**5 + "1")),
        ("gin", "HyperV2", "config.gin", _bound("[" * 80 + "]" * 80)),
        ("gin", "HyperV2", "config.gin", _bound("1000000000")),
        ("gin", "HyperV2", "config.gin", b"\xff"),
        ("gin", "HyperV2", "config.gin", b"#" * 5 * 10**6),
        (
            "gin",
            "Celo2",
            "config.gin",
            b"run_train.lopt = @Celo2()\nCelo2.regex_1d = '('",
        ),
    ],
)
def test_hostile_files_are_refused_by_name(kind, name, file, content, tmp_path):
    source, arguments = write(kind, name, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / file}") as error:
        l2o.load_unbound(source, **arguments)
    assert type(error.value) is ValueError and not LEAKS.search(str(error.value))


@pytest.mark.parametrize(
    "error",
    [
        *(AttributeError, KeyError, TypeError, RecursionError, OverflowError),
        *(MemoryError, IndexError, ZeroDivisionError, re.error),
        *(msgpack.ExtraData, msgpack.StackError, safetensors.SafetensorError),
    ],
)
def test_what_libraries_say_gives_way_to_what_was_expected(error, tmp_path):
    raised = error("secret", b"") if error is msgpack.ExtraData else error("secret")
    message = rf"^{tmp_path} .*, expected a card"
    with pytest.raises(ValueError, match=message) as found, reading(tmp_path, "a card"):
        raise raised
    assert type(found.value) is ValueError and "secret" not in str(found.value)


def test_what_l2o_says_is_kept(tmp_path):
    for error in (ValueError("x is 3"), Malformed("x is 3")):
        message = rf"^{tmp_path}: x is 3$"
        with pytest.raises(ValueError, match=message), reading(tmp_path, "a card"):
            raise error
    with pytest.raises(PermissionError), reading(tmp_path, "a card"):
        raise PermissionError(13, "denied")


@pytest.mark.parametrize("keys", [["b99"], ["b9999"], [f"b{i}" for i in range(3000)]])
def test_layers_are_counted_in_the_file(keys, tmp_path):
    tree = to_tree(some_theta(SMALL["small_fc"]), SMALL["small_fc"])
    tree["nn"]["~"] |= dict.fromkeys(keys, np.zeros(1, np.float32))
    path = tmp_path / "theta.state"
    path.write_bytes(flax.serialization.to_bytes(tree))
    message = rf"^{path}: hidden_layers of small_fc is \d+, but the weights are"
    with pytest.raises(ValueError, match=message):
        l2o.load(path)


def test_wrappers_in_wrappers_are_counted(tmp_path):
    folder = l2o.save(tmp_path / "w", *with_theta(OWN["wrapped"]))
    inner = {"name": "mlp", "arguments": {}}
    for _ in range(200):
        inner = {"name": "clip", "arguments": {"optimizer": inner}}
    _claims(folder, optimizer=inner)
    with pytest.raises(
        ValueError, match=r"more than 16 optimizers are wrapped in each"
    ):
        l2o.load(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused(kind, bad, tmp_path):
    source, arguments = write(kind, KINDS[kind][1][0], tmp_path)
    for path in tmp_path.rglob(WEIGHTS):
        arrays = safetensors.numpy.load_file(path)
        name = sorted(arrays)[0]
        arrays[name].flat[0] = bad
        safetensors.numpy.save_file(arrays, path)
    for path in (tmp_path / "theta.state", tmp_path / "params"):
        if path.exists():
            tree = flax.serialization.msgpack_restore(path.read_bytes())
            leaves, structure = jax.tree.flatten(tree)
            leaves[0] = np.full_like(leaves[0], bad)
            tree = jax.tree.unflatten(structure, leaves)
            path.write_bytes(flax.serialization.to_bytes(tree))
    if kind == "own":
        card = json.loads((source / CONFIG).read_text())
        content = (source / WEIGHTS).read_bytes()
        card["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
        (source / CONFIG).write_text(json.dumps(card))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}.*: \S+ is NaN or infinite in pl"
    ):
        l2o.load_unbound(source, **arguments)


def test_every_argument_of_every_optimizer_can_be_recorded():
    """Types that `check_recorded` does not understand would refuse sound cards."""
    for name, factory in {**l2o.factories(), **l2o.wrapper_factories()}.items():
        needed = {
            key: 0.1 if key == "decay_per_step" else l2o.learnable_sgd()
            for key, default in l2o.defaults_of(factory).items()
            if default is inspect.Parameter.empty
        }
        optimizer = factory(**needed)
        recorded = json.loads(json.dumps(dict(optimizer.arguments)))
        check_recorded(name, recorded, extent([(512, 512)] * 9))
