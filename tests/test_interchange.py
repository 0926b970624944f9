"""Weights that others wrote are read here, and ours there; no file runs code."""

import importlib.util
import json
import pickle
import re
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.numpy

import l2o
from l2o._features import FEATURES
from l2o._hub import IMPORTABLE
from l2o._published import from_config
from l2o._trees import to_tree

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT.parent / "shared" / "reference"
WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Sizes that all differ, so that one cannot be taken for another.
SMALL = {
    "mlp": l2o.mlp(hidden_size=5, hidden_layers=3),
    "small_fc": l2o.small_fc(hidden_size=3, hidden_layers=1),
    "mulo": l2o.mulo(hidden_size=6),
    "rnn_mlp": l2o.rnn_mlp(
        hidden_size=7,
        hidden_layers=1,
        lstm_hidden_size=5,
        from_mlp_size=4,
        from_lstm_size=3,
        lstm_to_ff=6,
    ),
    "nn_adam": l2o.nn_adam(lstm_hidden_size=5),
    "learnable_sgd": l2o.learnable_sgd(),
    "learnable_sgdm": l2o.learnable_sgdm(),
    "learnable_adam": l2o.learnable_adam(eps_root=1e-8),
    "velo": l2o.velo(lstm_hidden_size=7, param_inits=3, hidden_size=5),
    "celo": l2o.celo(lstm_hidden_size=7, param_inits=2, hidden_layers=1),
    "celo_adam": l2o.celo_adam(lstm_hidden_size=7),
    "celo2": l2o.celo2(hidden_size=5, hidden_layers=3),
    "celo2_base": l2o.celo2_base(hidden_size=5, hidden_layers=1),
}
# Their trees are those of small_fc and of celo2.
NAMED = {"mulo": "mulo", "celo2_base": "celo2_base"}


def _theta(optimizer, seed=0):
    """Nothing zero, nothing twice, so that a lost or permuted array shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype),
        jax.eval_shape(optimizer.init_theta, jax.random.key(0)),
    )


def _assert_same(loaded, optimizer, theta):
    actual, actual_theta = loaded
    assert (actual.name, actual.arguments) == (optimizer.name, optimizer.arguments)
    assert jax.tree.structure(actual_theta) == jax.tree.structure(theta)
    for x, y in zip(jax.tree.leaves(actual_theta), jax.tree.leaves(theta)):
        assert isinstance(x, jax.Array) and x.dtype == jnp.float32
        np.testing.assert_array_equal(x, y)


def _write(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flax.serialization.to_bytes(tree))
    return path


@pytest.fixture
def state(tmp_path):
    """A path whose folder's name tells nothing."""
    return tmp_path / "w" / "theta.state"


# flax's msgpack.


@flax.struct.dataclass
class ParameterCheckpoint:
    params: Any
    gen_id: str
    step: int


class LSTMState(NamedTuple):
    hidden: Any
    cell: Any


def _reversed(tree):
    if not isinstance(tree, dict):
        return tree
    return {key: _reversed(tree[key]) for key in reversed(tree)}


def _with_lstm(tree, wrap):
    if "lstm_init_state" not in tree:
        return tree
    init = tree["lstm_init_state"]
    return {**tree, "lstm_init_state": wrap(init["hidden"], init["cell"])}


def _as_old_flax(hidden, cell):
    fields, values = ["hidden", "cell"], [hidden, cell]
    return {"name": "LSTMState", "fields": fields, "values": values}


WRITTEN_AS = {
    "bare": lambda tree: tree,
    "checkpoint": lambda tree: ParameterCheckpoint(tree, "id", 7),
    "old tuple": lambda tree: (tree, "", 0),
    "other order": _reversed,
    "named tuple": lambda tree: _with_lstm(tree, LSTMState),
    "old named tuple": lambda tree: _with_lstm(tree, _as_old_flax),
}


@pytest.mark.parametrize("written_as", WRITTEN_AS)
@pytest.mark.parametrize("name", SMALL)
def test_published_file_is_read_exactly(state, name, written_as):
    optimizer = SMALL[name]
    theta = _theta(optimizer)
    _write(state, WRITTEN_AS[written_as](to_tree(theta, optimizer)))
    for source in (state, str(state), state.parent):
        loaded = l2o.load_theta(source, optimizer=NAMED.get(name))
        _assert_same(loaded, optimizer, theta)


def test_published_file_optimizes_as_its_theta_does(state):
    optimizer = SMALL["celo"]
    theta = _theta(optimizer)
    _write(state, to_tree(theta, optimizer))
    params = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
    updates = []
    for tx in (l2o.load(state, num_steps=9), optimizer.bind(theta, num_steps=9)):
        updates.append(tx.update(params, tx.init(params), params, value=0.5)[0])
    np.testing.assert_array_equal(updates[0]["w"], updates[1]["w"])
    assert np.any(updates[0]["w"])


def test_file_of_google_is_called_params(tmp_path):
    optimizer = SMALL["velo"]
    theta = _theta(optimizer)
    tree = to_tree(theta, optimizer)
    _write(tmp_path / "params", ParameterCheckpoint(tree, "id", 7))
    _assert_same(l2o.load_theta(tmp_path), optimizer, theta)
    (tmp_path / "params").rename(tmp_path / "params_300")
    _assert_same(l2o.load_theta(tmp_path / "params_300"), optimizer, theta)


def test_arrays_that_flax_splits_are_joined(state, monkeypatch):
    optimizer = SMALL["velo"]
    theta = _theta(optimizer)
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    _write(state, to_tree(theta, optimizer))
    assert state.read_bytes().count(b"__msgpack_chunked_array__") > 10
    _assert_same(l2o.load_theta(state), optimizer, theta)


def test_bfloat16_is_read(state):
    optimizer = SMALL["celo"]
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _theta(optimizer))
    _write(state, to_tree(theta, optimizer))
    assert b"bfloat16" in state.read_bytes()
    expected = jax.tree.map(lambda x: x.astype(jnp.float32), theta)
    _assert_same(l2o.load_theta(state), optimizer, expected)


def _scalars(theta):
    """small_fc's other layout, which has one scalar per weight."""
    leaves = {}
    for name, x in theta["nn"].items():
        for index in np.ndindex(x.shape):
            leaves["_".join([name, *map(str, index)])] = np.asarray(x[index])
    return {**theta, "nn": {"~": leaves}}


def test_weights_kept_as_scalars_are_joined(state):
    optimizer = l2o.small_fc(hidden_size=11)  # sorted as text, 10 is before 2
    theta = _theta(optimizer)
    _write(state, _scalars(theta))
    _assert_same(l2o.load_theta(state), optimizer, theta)


def test_missing_scalar_is_refused(state):
    tree = _scalars(_theta(SMALL["small_fc"]))
    scalar = tree["nn"]["~"].pop("w0_3_1")
    _write(state, tree)
    with pytest.raises(ValueError, match=r"it lacks nn/~/w0; .*unknown nn/~/w0_0_0, "):
        l2o.load(state)
    tree["nn"] |= {"~": {**tree["nn"]["~"], "w0_3_1": scalar}, "other": scalar}
    _write(state, tree)
    with pytest.raises(ValueError, match=r": it has unknown nn/other$"):
        l2o.load(state)
    tree["nn"]["~"]["w0_3_1"] = "text"
    _write(state, tree)
    with pytest.raises(ValueError, match=r"holds no theta that l2o knows"):
        l2o.load(state)


# VeLO's tree, written down rather than computed.

GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)


def _velo_tree(size, bank):
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def linear(inputs, outputs):
        return {"w": array(inputs, outputs), "b": array(outputs)}

    return {
        "ff_mod_stack": {
            "~": {
                **{f"w0__{i}": array(bank, n, 4) for i, n in enumerate(GROUPS)},
                "b0": array(bank, 4),
                "w1": array(bank, 4, 4),
                "b1": array(bank, 4),
                "w2": array(bank, 4, 3),
                "b2": array(bank, 3),
            }
        },
        "lstm_init_state": {"hidden": array(1, size), "cell": array(1, size)},
        "rnn_params": {
            "linear": linear(30, size),
            "linear_1": linear(30, size),
            "linear_2": linear(30, size),
            "rnn/linear": linear(2 * size, 4 * size),
            "rnn_to_controls": linear(size, bank),
            "step_size": linear(size, 1),
        },
    }


def test_released_velo_has_its_size_and_order(state):
    tree = _velo_tree(512, 256)
    _write(state, tree)
    optimizer, theta = l2o.load_theta(state)
    assert (optimizer.name, optimizer.arguments) == ("velo", l2o.velo().arguments)
    assert sum(x.size for x in jax.tree.leaves(theta)) == 2_320_385
    published = tree["ff_mod_stack"]["~"]
    groups = [published[f"w0__{i}"] for i in range(14)]
    np.testing.assert_array_equal(theta["bank"]["w0"], np.concatenate(groups, 1))
    np.testing.assert_array_equal(theta["bank"]["w1"], published["w1"])
    rnn = tree["rnn_params"]
    names = {"dead": "linear", "pooled": "linear_1", "direct": "linear_2"}
    for ours, theirs in names.items():
        np.testing.assert_array_equal(theta["mix"][ours]["w"], rnn[theirs]["w"])
    np.testing.assert_array_equal(theta["lstm"]["w"], rnn["rnn/linear"]["w"])
    np.testing.assert_array_equal(theta["controls"]["b"], rnn["rnn_to_controls"]["b"])
    init = tree["lstm_init_state"]
    np.testing.assert_array_equal(theta["lstm_init"]["hidden"], init["hidden"])


def _other_shape(tree):
    tree["rnn_params"]["rnn/linear"]["w"] = np.zeros((16, 31), np.float32)


def _transposed(tree):
    step_size = tree["rnn_params"]["step_size"]
    step_size["w"] = step_size["w"].T


def _lacking(tree):
    del tree["ff_mod_stack"]["~"]["b1"]


def _unknown(tree):
    tree["rnn_params"]["linear_3"] = {"w": np.zeros(2, np.float32)}


def _exchanged(tree):
    bank = tree["ff_mod_stack"]["~"]
    bank["w0__0"], bank["w0__3"] = bank["w0__3"], bank["w0__0"]


def _nothing(tree):
    tree["rnn_params"]["step_size"]["b"] = None


def _text(tree):
    tree["rnn_params"]["step_size"] = "small"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_shape, r"rnn_params/rnn/linear/w is \(16, 31\), expected \(16, 32\)"),
        (_transposed, r"rnn_params/step_size/w is \(1, 8\), expected \(8, 1\)"),
        (_lacking, r"it lacks ff_mod_stack/~/b1"),
        (_unknown, r"it has unknown rnn_params/linear_3/w"),
        (_exchanged, r"ff_mod_stack/~/w0__0 is \(2, 3, 4\), expected \(2, 1, 4\)"),
        (_nothing, r"it lacks rnn_params/step_size/b"),
        (_text, r"it lacks .*rnn_params/step_size/b; .*unknown rnn_params/step_size"),
    ],
)
def test_file_that_does_not_fit_says_where(state, spoil, message):
    tree = _velo_tree(8, 2)
    spoil(tree)
    _write(state, tree)
    sizes = r"lstm_hidden_size=8, param_inits=2, hidden_size=4, hidden_layers=2"
    where = rf"{re.escape(str(state))} does not fit velo\({sizes}\): .*{message}"
    with pytest.raises(ValueError, match=where):
        l2o.load(state, num_steps=10)


def test_leaf_that_is_text_is_refused(state):
    tree = to_tree(_theta(SMALL["nn_adam"]), SMALL["nn_adam"])
    assert np.shape(tree["per_layer_lr"]) == ()
    _write(state, {**tree, "per_layer_lr": "0.1"})
    with pytest.raises(ValueError, match=r"per_layer_lr is a str"):
        l2o.load(state)


# google's configuration beside it.

GIN = """
# run_train.lopt = @MLPLOpt()
import learned_optimization.research.general_lopt.hyper_v2

outer_train.run_train.lopt = @hyper_v2.HyperV2()
run_train.num_steps = %steps
LOpt.lstm_hidden_size = 9
HyperV2.lstm_hidden_size = 8
general_lopt.hyper_v2.HyperV2.param_inits = 2  # the bank
train/HyperV2.use_bugged_next_lstm_state = True
HyperV2.initial_momentum_decays = [0.8, 0.9, 0.95]
HyperV2.initial_adafactor_decays = \\
    (0.7, 0.8, 0.9)
HyperV2.summarize_each_layer = True
# HyperV2.exp_mult = 1.0
"""
FROM_GIN = {
    "lstm_hidden_size": 8,
    "param_inits": 2,
    "ff_mult": 100.0,
    "use_bugged_next_lstm_state": True,
    "use_bugged_loss_features": True,  # by default there
    "momentum_decays": [0.8, 0.9, 0.95],
    "adafactor_decays": [0.7, 0.8, 0.9],
}


@pytest.fixture
def gin(tmp_path):
    _write(tmp_path / "params", ParameterCheckpoint(_velo_tree(8, 2), "id", 7))

    def write(text):
        (tmp_path / "config.gin").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("name", [None, "velo"])
def test_arguments_arrive_from_gin(gin, name):
    folder = gin(GIN)
    optimizer, _ = l2o.load_theta(folder, optimizer=name)
    assert optimizer.arguments == l2o.velo(**FROM_GIN).arguments
    optimizer, _ = l2o.load_theta(folder, optimizer=name, exp_mult=0.5, ff_mult=1.0)
    expected = l2o.velo(**{**FROM_GIN, "exp_mult": 0.5, "ff_mult": 1.0})
    assert optimizer.arguments == expected.arguments


def test_gin_of_celo_has_its_defaults(gin):
    bound = "HyperV2.param_inits = 2\nHyperV2.lstm_hidden_size = 8"
    folder = gin(f"run_train.lopt = @celo.optimizers.velo.HyperV2()\n{bound}")
    assert l2o.load_theta(folder)[0].arguments["ff_mult"] == 1.0


def test_gin_without_an_optimizer_leaves_it_to_the_file(gin):
    optimizer, _ = l2o.load_theta(gin("HyperV2.exp_mult = 3.0\n"))
    assert optimizer.arguments == l2o.velo(lstm_hidden_size=8, param_inits=2).arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "HyperV2.param_inits = %bank",
            r"config.gin binds HyperV2.param_inits to '%bank', expected a number",
        ),
        (
            "HyperV2.initial_rms_decays = [0.9,\n  0.99]",
            r"binds HyperV2.initial_rms_decays to '\[0.9,', .*on one line: write it",
        ),
        (
            "HyperV2.exp_mult = __import__('os').getcwd()",
            r"binds HyperV2.exp_mult to .* expected a number",
        ),
        (
            "HyperV2.initial_rms_decays = 0.9",
            r"config.gin has an ill-typed argument of ",
        ),
        ("HyperV2.depth = 3", r"HyperV2 has the argument 'depth', unknown to l2o"),
        ("HyperV2.param_inits = 3", r"does not fit velo.*param_inits=3.* is \(2, 1, "),
        (
            "run_train.lopt = %lopt",
            r"binds run_train.lopt to '%lopt', expected a class .* move config.gin",
        ),
        (
            "run_train.lopt = @my.OwnLOpt()",
            r"binds OwnLOpt, unknown to l2o; known: AdafacMLPLOpt, Celo, .*HyperV2, ",
        ),
    ],
)
def test_gin_that_is_not_understood_says_where(gin, text, message):
    folder = gin(f"{GIN}\n{text}\n")
    with pytest.raises(ValueError, match=message):
        l2o.load(folder, num_steps=10)


@pytest.mark.parametrize(
    ("cls", "config", "expected"),
    [
        ("celo.Celo2", {"regex_1d": ""}, l2o.celo2(regex_1d=None, adam_b2=0.999)),
        (
            "celo.CeloAdam",
            {"lstm_hidden_size": 5, "initial_rms_decays": (0.9,), "with_g": False},
            l2o.celo_adam(lstm_hidden_size=5, b2=0.9),
        ),
        (
            "celo.Celo",
            {
                "param_inits": 1,
                "train_phase": 2,
                "with_fac_rsqrt": False,
                "with_validation_feature_dim": True,
                "validation_mode": True,
            },
            l2o.celo(
                lstm_hidden_size=128,
                features=[x for x in FEATURES if x not in ("rsqrt_row", "rsqrt_col")],
                validation_mode=True,
            ),
        ),
    ],
)
def test_arguments_of_published_classes_become_ours(cls, config, expected):
    assert from_config(cls, config)[2:] == expected[2:]


def test_arguments_without_a_counterpart_are_refused():
    with pytest.raises(
        ValueError, match=r"celo_adam has one decay each, not initial_m"
    ):
        from_config("celo.CeloAdam", {"initial_momentum_decays": (0.9, 0.99)})
    with pytest.raises(
        ValueError, match=r"celo.Celo2 has the argument 'b', unknown to"
    ):
        from_config("celo.Celo2", {"b": 1})


# PyLO's folders.

PYLO = {
    "elo": l2o.elo(hidden_size=6, hidden_layers=3),
    "mulo": SMALL["mulo"],
    "celo2": l2o.celo2(variant="pylo", hidden_size=5, hidden_layers=1),
    "elo_celo2": l2o.elo_celo2(hidden_size=5, activation="tanh"),
}
PYLO_VELO = l2o.velo(lstm_hidden_size=7, param_inits=3, hidden_size=5)


def _save_pylo(folder, optimizer):
    theta = _theta(optimizer)
    assert l2o.save(folder, optimizer, theta, format="pylo") == folder
    return theta


def _edit(folder, edit):
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    edit(arrays)
    safetensors.numpy.save_file(arrays, folder / WEIGHTS)


@pytest.mark.parametrize("name", PYLO)
def test_folder_of_pylo_round_trip_is_exact(tmp_path, name):
    folder = tmp_path / f"my-{name}"
    theta = _save_pylo(folder, PYLO[name])
    _assert_same(l2o.load_theta(folder), PYLO[name], theta)
    folder = folder.rename(tmp_path / "w")
    _assert_same(l2o.load_theta(folder, optimizer=name), PYLO[name], theta)


def test_layout_of_pylo_is_its_own(tmp_path):
    theta = _save_pylo(tmp_path, l2o.elo())
    arrays = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    layers = {"input": "0", "linear_0": "1", "output": "2"}
    assert len(arrays) == 6
    for theirs, ours in layers.items():
        weights = arrays[f"network.{theirs}.weight"]
        np.testing.assert_array_equal(weights, theta["nn"][f"w{ours}"].T)
        biases = arrays[f"network.{theirs}.bias"]
        np.testing.assert_array_equal(biases, theta["nn"][f"b{ours}"])


@pytest.mark.parametrize(
    ("optimizer", "folder", "config"),
    [
        (l2o.elo(), ".", {"input_size": 39, "hidden_size": 32, "hidden_layers": 1}),
        (
            l2o.elo_celo2(hidden_layers=3, activation="tanh"),
            ".",
            {
                "feature_dims": list(GROUPS),
                "hidden_size": 8,
                "hidden_layers": 3,
                "activation": "tanh",
            },
        ),
        (
            PYLO_VELO,
            "VeLO_RNN",
            {
                "input_size": 30,
                "lstm_hidden_size": 7,
                "param_inits": 3,
                "mix_layers": True,
            },
        ),
        (
            PYLO_VELO,
            "VeLO_MLP",
            {
                "param_inits": 3,
                "input_size": 30,
                "hidden_size": 5,
                "hidden_layers": 1,
                "output_size": 3,
            },
        ),
    ],
)
def test_pylo_is_told_the_arguments_of_its_classes(tmp_path, optimizer, folder, config):
    _save_pylo(tmp_path, optimizer)
    assert json.loads((tmp_path / folder / CONFIG).read_text()) == config


def test_small_fc_becomes_mulo(tmp_path):
    optimizer = l2o.small_fc(hidden_size=3)
    theta = _save_pylo(tmp_path / "mulo", optimizer)
    _assert_same(l2o.load_theta(tmp_path / "mulo"), l2o.mulo(hidden_size=3), theta)


def test_mulo_without_decays_has_those_of_pylo(tmp_path):
    theta = _save_pylo(tmp_path, PYLO["mulo"])
    (tmp_path / "decays.json").unlink()
    _, loaded = l2o.load_theta(tmp_path, optimizer="mulo")
    np.testing.assert_array_equal(loaded["rms_decays"], np.float32([0.01079706]))
    np.testing.assert_array_equal(loaded["nn"]["w0"], theta["nn"]["w0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"decays.json does not hold lists of numbers by name: "),
        ("{", r"decays.json does not hold lists of numbers by name: "),
        (
            '{"rms_decays": "x"}',
            r"decays.json does not hold lists of numbers by name: ",
        ),
        ('{"rms_decays": 0.1}', r"mulo have rms_decays of shape \(\), expected \(1,\)"),
        ('{"rates": [0.1]}', r"mulo have unknown rates"),
    ],
)
def test_decays_that_are_not_understood_are_named(tmp_path, text, message):
    _save_pylo(tmp_path, PYLO["mulo"])
    (tmp_path / "decays.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        l2o.load(tmp_path, optimizer="mulo")


@pytest.mark.parametrize("half", ["VeLO_RNN", "VeLO_MLP"])
def test_either_half_of_velo_loads_both(tmp_path, half, monkeypatch):
    theta = _save_pylo(tmp_path, PYLO_VELO)
    _assert_same(l2o.load_theta(tmp_path / half), PYLO_VELO, theta)
    monkeypatch.chdir(tmp_path / half)
    _assert_same(l2o.load_theta("."), PYLO_VELO, theta)


@pytest.mark.parametrize("half", ["VeLO_RNN", "VeLO_MLP"])
def test_missing_half_of_velo_is_named(tmp_path, half):
    _save_pylo(tmp_path, PYLO_VELO)
    other = {"VeLO_RNN": "VeLO_MLP", "VeLO_MLP": "VeLO_RNN"}[half]
    (tmp_path / other).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError) as error:
        l2o.load(tmp_path / half)
    assert str(error.value) == (
        f"{tmp_path / half} is one half of PyLO's VeLO; expected the other beside it, "
        f"in {tmp_path / other}"
    )
    (tmp_path / half).rename(tmp_path / "w")
    with pytest.raises(ValueError, match=rf"expected the other .* in .*{other}$"):
        l2o.load(tmp_path / "w")


def test_what_velo_mixed_last_is_ignored(tmp_path):
    theta = _save_pylo(tmp_path, PYLO_VELO)

    def mixed(arrays):
        for name in list(arrays):
            scratch = name.replace("_.", ".") if "_." in name else name[:-1]
            arrays[scratch] = np.zeros_like(arrays[name][0])

    _edit(tmp_path / "VeLO_MLP", mixed)
    arrays = safetensors.numpy.load_file(tmp_path / "VeLO_MLP" / WEIGHTS)
    assert {"input_weights", "hidden_bias.0", "output_bias"} < set(arrays)
    _assert_same(l2o.load_theta(tmp_path / "VeLO_RNN"), PYLO_VELO, theta)


def _drop(name):
    return lambda arrays: arrays.pop(name)


def _add(name):
    return lambda arrays: arrays.update({name: np.zeros(2, np.float32)})


def _change(name, change):
    return lambda arrays: arrays.update(
        {name: np.array(change(arrays[name]), order="C")}
    )


def _cut(x):
    return x[..., :-1]


def _swap_groups(arrays):
    arrays["w0.0"], arrays["w0.3"] = arrays["w0.3"], arrays["w0.0"]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("elo", _drop("network.linear_0.bias"), r"elo lack network.linear_0.bias"),
        ("elo", _drop("network.input.bias"), r"elo lack 'network.input.bias'"),
        ("elo", _add("network.linear_7.bias"), r"elo lack network.linear_2.bias"),
        ("elo", _add("network.extra"), r"elo have unknown network.extra"),
        ("elo", _add("momentum_decays"), r"elo have unknown momentum_decays"),
        (
            "elo",
            _change("network.input.weight", np.transpose),
            r"network.input.weight of shape \(39, 6\), expected \(6, 39\)",
        ),
        (
            "elo",
            _change("network.output.bias", lambda x: x[0]),
            r"elo have network.output.bias of shape \(\), expected \(2,\)",
        ),
        (
            "mulo",
            _change("network.linear_0.bias", _cut),
            r"mulo have network.linear_0.bias of shape \(5,\), expected \(6,\)",
        ),
        ("celo2", _drop("w0.13"), r"celo2 lack w0.13"),
        ("celo2", _drop("dense_b.0"), r"celo2 lack dense_b.0"),
        ("celo2", _add("w0.14"), r"celo2 have unknown w0.14"),
        ("celo2", _swap_groups, r"w0.0 of shape \(3, 5\), expected \(1, 5\)"),
        (
            "elo_celo2",
            _change("b0", _cut),
            r"elo_celo2 have dense_b.0 of shape \(5,\), expected \(4,\)",
        ),
        ("velo", _drop("lstm.linear.bias"), r"velo lack 'lstm.linear.bias'"),
        ("velo", _add("mix_layer4.bias"), r"velo have unknown mix_layer4.bias"),
        ("velo", _drop("mix_layer1.weight"), r"velo lack mix_layer1.weight"),
        (
            "velo",
            _change("mix_layer2.weight", _cut),
            r"velo have mix_layer2.weight of shape \(7, 29\), expected \(7, 30\)",
        ),
    ],
)
def test_folder_of_pylo_that_does_not_fit_says_where(tmp_path, name, spoil, message):
    _save_pylo(tmp_path, PYLO.get(name, PYLO_VELO))
    folder = tmp_path / "VeLO_RNN" if name == "velo" else tmp_path
    _edit(folder, spoil)
    with pytest.raises(ValueError, match=rf"the weights of PyLO's .*{message}"):
        l2o.load(folder, optimizer=name)


@pytest.mark.parametrize("name", ["w", "velo", "celo", "mulo-elo", "simulo"])
def test_folder_whose_name_tells_nothing_asks_for_one(tmp_path, name):
    """Neither do the folders above it, such as a home directory."""
    folder = tmp_path / "elo" / "mulo" / name
    _save_pylo(folder, PYLO["elo"])
    message = r"name one, `l2o.load\(path, optimizer=...\)` with 'elo' or 'mulo'"
    with pytest.raises(ValueError, match=rf"{name} fits several.*{message}"):
        l2o.load(folder)


def test_folders_above_do_not_make_celo2_something_else(tmp_path):
    optimizer = PYLO["celo2"]
    theta = _save_pylo(tmp_path / "elo-celo2" / "w", optimizer)
    _assert_same(l2o.load_theta(tmp_path / "elo-celo2" / "w"), optimizer, theta)
    optimizer = SMALL["celo2"]
    tree = to_tree(_theta(optimizer), optimizer)
    for folder, name in {
        "celo2-base/w": "celo2",
        "database": "celo2",
        "base": "celo2",
        "train_celo2base": "celo2_base",
        "celo2-base": "celo2_base",
        "celo2_base_seed0": "celo2_base",
    }.items():
        path = _write(tmp_path / folder / "theta.state", tree)
        assert l2o.load_theta(path)[0].name == name
        assert l2o.load_theta(path.parent)[0].name == name


@pytest.mark.parametrize(
    ("name", "wrong", "known"),
    [
        ("elo", "celo2", "elo, mulo"),
        ("celo2", "celo", "celo2, celo2_base, elo_celo2"),
        ("velo", "celo", "velo"),
    ],
)
def test_wrong_name_for_a_folder_of_pylo_is_refused(tmp_path, name, wrong, known):
    _save_pylo(tmp_path, PYLO.get(name, PYLO_VELO))
    folder = tmp_path / "VeLO_RNN" if name == "velo" else tmp_path
    message = f"{folder} holds weights for {known}, not for '{wrong}'"
    with pytest.raises(ValueError, match=re.escape(message)):
        l2o.load(folder, optimizer=wrong)


def test_what_pylo_lacks_is_refused(tmp_path):
    optimizer = SMALL["celo"]
    with pytest.raises(ValueError, match=r"PyLO has no 'celo'; it has elo, mulo, .*ve"):
        l2o.save(tmp_path / "w", optimizer, _theta(optimizer), format="pylo")
    optimizer = l2o.velo(lstm_hidden_size=3, param_inits=2, dead_mix_layer=False)
    with pytest.raises(ValueError, match=r"PyLO's VeLO has the dead mixing layer: ke"):
        l2o.save(tmp_path / "w", optimizer, _theta(optimizer), format="pylo")
    with pytest.raises(ValueError, match=r"unknown format 'onnx'; known: l2o, pylo"):
        l2o.save(tmp_path / "w", SMALL["mlp"], _theta(SMALL["mlp"]), format="onnx")
    assert not (tmp_path / "w").exists()


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
        message = r"theta.state is truncated or not flax's msgpack .*pickles are not re"
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
    _write(state, to_tree(_theta(SMALL["celo"]), SMALL["celo"]))
    content = state.read_bytes()
    for length in range(0, len(content), 61):
        state.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"theta.state is truncated .*copy it aga"):
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
        (_array((3,), "float32", b"1234"), r"cannot reshape"),
        (_array((3,), "float32", b"123"), r"buffer size must be a multiple"),
        (msgpack.ExtType(1, b"\x93"), r"is truncated or not flax's msgpack"),
        (CHUNKED, r"chunks"),
        ({**CHUNKED, "chunks": {"0": _array((1,), "float32", b"1234")}}, r"reshape"),
        (msgpack.Timestamp(1), r"per_layer_lr is a Timestamp"),
        ([0.1], r"per_layer_lr is a list"),
    ],
)
def test_malformed_leaf_is_refused(state, leaf, message):
    tree = flax.serialization.to_state_dict(
        to_tree(_theta(SMALL["nn_adam"]), SMALL["nn_adam"])
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
    _write(state, to_tree(_theta(SMALL["celo"]), SMALL["celo"]))
    with pytest.raises(ValueError, match=message):
        l2o.load(state, optimizer=name, num_steps=1)


def test_own_optimizer_has_its_own_arguments(state, tmp_path):
    optimizer = SMALL["celo"]
    theta = _theta(optimizer)
    _write(state, to_tree(theta, optimizer))
    own = l2o.celo(**{**optimizer.arguments, "train_phase": 1})
    _assert_same(l2o.load_theta(state, optimizer=own), own, theta)
    for folder in (state, l2o.save(tmp_path / "own", optimizer, theta)):
        message = r"train_phase, exp_mult: give arguments to your optimizer, not to lo"
        with pytest.raises(ValueError, match=message):
            l2o.load(folder, optimizer=own, train_phase=2, exp_mult=1.0)
    nameless = l2o.LearnedOptimizer(own.init_theta, own.bind)
    with pytest.raises(ValueError, match=r"only l2o's factories read: name one, `l2o"):
        l2o.load(state, optimizer=nameless)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"theta.state' is neither a file or f"):
        l2o.load(tmp_path / "theta.state")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"config.json is missing: a frozen opt"
    ):
        l2o.load(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_file_of_a_folder_asks_for_the_folder(tmp_path, name):
    _save_pylo(tmp_path, PYLO["elo"])
    with pytest.raises(ValueError, match=rf"{name} is part of a folder: give the fol"):
        l2o.load(tmp_path / name)


def test_card_of_a_published_file_is_not_one(state):
    _write(state, {})
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        l2o.read_card(state)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_safetensors_that_were_cut_off_are_refused(tmp_path, cut):
    _save_pylo(tmp_path, PYLO["elo"])
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:cut])
    with pytest.raises(
        ValueError, match=r"model.safetensors is truncated or not a saf"
    ):
        l2o.load(tmp_path, optimizer="elo")


def test_types_that_numpy_lacks_are_refused(tmp_path):
    _save_pylo(tmp_path, PYLO["elo"])
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
    _write(tmp_path / "theta.state", to_tree(_theta(SMALL["celo"]), SMALL["celo"]))
    theta = _theta(SMALL["mlp"])
    l2o.save(tmp_path, SMALL["mlp"], theta)
    _assert_same(l2o.load_theta(tmp_path), SMALL["mlp"], theta)
    (tmp_path / CONFIG).unlink()
    assert l2o.load_theta(tmp_path)[0].name == "celo"


# A model hub, which is not there.


class FakeHub(types.ModuleType):
    """`huggingface_hub` with a local cache and nothing behind it."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.calls = root, []

    def folder(self, repository, revision=None):
        name = "models--" + repository.replace("/", "--")
        return self.root / name / "snapshots" / (revision or "main")

    def add_velo(self, owner, optimizer, theta):
        saved = l2o.save(self.root / "saved", optimizer, theta, format="pylo")
        for half in ("VeLO_RNN", "VeLO_MLP"):
            folder = self.folder(f"{owner}/{half}")
            folder.parent.mkdir(parents=True)
            (saved / half).rename(folder)

    def snapshot_download(
        self, name, *, revision=None, allow_patterns=None, local_files_only=False
    ):
        self.calls.append((name, revision, local_files_only))
        assert not [x for x in allow_patterns if re.search(r"[*?]|py|pkl|pt|bin", x)]
        folder = self.folder(name, revision)
        if not folder.is_dir():
            raise OSError("no network" if not local_files_only else "not cached")
        return str(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)  # a folder of the same name would be taken
    return fake


@pytest.mark.parametrize("source", IMPORTABLE)
def test_cached_repository_loads_without_a_download(hub, source):
    factory, arguments = IMPORTABLE[source]
    optimizer = l2o.make(factory, **arguments)
    theta = _theta(optimizer)
    fetched = [source]
    if source.startswith("amoudgl/"):
        _write(hub.folder(source) / "theta.state", to_tree(theta, optimizer))
    elif source == "Pauljanson002/VeLO_RNN":
        hub.add_velo("Pauljanson002", optimizer, theta)
        fetched.append("Pauljanson002/VeLO_MLP")
    else:
        l2o.save(hub.folder(source), optimizer, theta, format="pylo")
    _assert_same(l2o.load_theta(source), optimizer, theta)
    assert hub.calls == [(name, None, True) for name in fetched]


def test_other_half_of_velo_asks_for_this_one(hub):
    theta = _theta(PYLO_VELO)
    hub.add_velo("me", PYLO_VELO, theta)
    _assert_same(l2o.load_theta("me/VeLO_MLP", download=True), PYLO_VELO, theta)
    assert hub.calls == [("me/VeLO_MLP", None, False), ("me/VeLO_RNN", None, False)]


def test_other_networks_have_no_other_half(hub):
    theta = _theta(PYLO["elo"])
    l2o.save(hub.folder("me/elo-MLP"), PYLO["elo"], theta, format="pylo")
    _assert_same(l2o.load_theta("me/elo-MLP"), PYLO["elo"], theta)
    assert hub.calls == [("me/elo-MLP", None, True)]


def test_revision_keeps_the_arguments(hub):
    optimizer = l2o.velo(lstm_hidden_size=64, param_inits=32, ff_mult=1.0)
    theta = _theta(optimizer)
    folder = hub.folder("amoudgl/velo-s", "v1.0")
    _write(folder / "theta.state", to_tree(theta, optimizer))
    _assert_same(l2o.load_theta("amoudgl/velo-s@v1.0"), optimizer, theta)
    loaded, _ = l2o.load_theta("amoudgl/velo-s@v1.0", exp_mult=0.5)
    assert (loaded.arguments["exp_mult"], loaded.arguments["ff_mult"]) == (0.5, 1.0)
    loaded, _ = l2o.load_theta("amoudgl/velo-s@v1.0", ff_mult=2.0)
    assert loaded.arguments["ff_mult"] == 2.0
    assert hub.calls == 3 * [("amoudgl/velo-s", "v1.0", True)]


def test_what_is_not_cached_names_the_download(hub):
    message = r"'amoudgl/celo' is neither a folder nor in the local cache .*download=Tr"
    for load in (l2o.load, l2o.load_theta):
        with pytest.raises(FileNotFoundError, match=message):
            load("amoudgl/celo")
    assert hub.calls == 2 * [("amoudgl/celo", None, True)]


def test_download_without_a_network_says_so(hub):
    with pytest.raises(FileNotFoundError, match=r"'a/b@c' could not be fetched .*no n"):
        l2o.load("a/b@c", download=True)
    assert hub.calls == [("a/b", "c", False)]


def test_without_the_library_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    message = r"'amoudgl/celo' is not a folder.*: `pip install l2o\[hub\]`"
    with pytest.raises(ModuleNotFoundError, match=message):
        l2o.load("amoudgl/celo")


def test_paths_are_not_taken_for_repositories(hub, tmp_path):
    theta = _theta(SMALL["celo"])
    _write(Path("amoudgl/mine/theta.state"), to_tree(theta, SMALL["celo"]))
    _assert_same(l2o.load_theta("amoudgl/mine"), SMALL["celo"], theta)
    _save_pylo(Path("me"), PYLO_VELO)
    Path("me/VeLO_MLP").rename("me/other")
    with pytest.raises(ValueError, match=r"is one half of PyLO's VeLO; expected the"):
        l2o.load("me/VeLO_RNN")
    for source in (tmp_path / "a" / "b", "/a/b", "a/b/c", Path("a/b"), "nothing"):
        with pytest.raises(FileNotFoundError, match=r"is neither a file or folder nor"):
            l2o.load(source)
    assert hub.calls == []


# What there is.

# Meta-parameters, and bytes of state per parameter of a large matrix.
PUBLISHED_SIZES = {
    "celo": (37_089, 16),
    "celo2": (347, 16),
    "celo2_base": (347, 16),
    "celo_adam": (36_865, 8),
    "elo": (2_402, 16),
    "elo_celo2": (347, 16),
    "l2o_pa": (5_805, 324),
    "l2o_scale": (8_349, 84),
    "learnable_adam": (4, 8),
    "learnable_sgd": (1, 0),
    "learnable_sgdm": (2, 4),
    "lstm": (5_141, 320),
    "mlp": (1_762, 24),
    "mulo": (2_409, 16),
    "nn_adam": (6_856, 8),
    "rnn_mlp": (35_799, 40),
    "rnnprop": (6_641, 328),
    "small_fc": (197, 16),
    "velo": (2_320_385, 16),
}


@pytest.fixture(scope="module")
def available():
    return l2o.available()


def test_everything_is_listed_once(available):
    kinds = {"architecture": l2o.FACTORIES, "shipped": l2o.shipped()}
    for kind, names in {**kinds, "importable": IMPORTABLE}.items():
        assert [x.name for x in available if x.kind == kind] == list(names)
    assert len(available) == len(l2o.FACTORIES) + len(l2o.shipped()) + len(IMPORTABLE)
    for row in available:
        assert row.needs == row.optimizer.needs
        assert re.search(r"\(.*20\d\d\)", row.source), row.name


def test_sizes_are_those_published(available):
    rows = [x for x in available if x.kind == "architecture"]
    sizes = {x.name: (x.meta_parameters, x.state_bytes) for x in rows}
    assert sizes == PUBLISHED_SIZES


def test_weights_are_listed_with_what_they_need(available):
    rows = {x.name: x for x in available if x.kind != "architecture"}
    for name, (factory, arguments) in IMPORTABLE.items():
        optimizer = l2o.make(factory, **arguments)
        assert rows[name].optimizer.name == factory
        assert rows[name].optimizer.arguments == optimizer.arguments
    assert rows["amoudgl/velo-s"].meta_parameters == 46_337
    assert rows["amoudgl/velo-4000"].meta_parameters == 2_320_385
    for name in l2o.shipped():
        assert rows[name].meta_parameters == l2o.read_card(name)["meta_parameters"]


# The published weights, where there are copies of them.

ANCHORS = {
    "celo": {
        "bank/b0": 0.32953537,
        "bank/w0": (0, 0.31238586),
        "bank/w1": 0.5176754,
        "step_size/b": 0.29133046,
        "lstm_init/hidden": 0.17633149,
    },
    "celo_adam": {
        "step_size/b": 0.09563626,
        "lstm_init/cell": 0.10146724,
        "lstm/w": 0.11209141,
    },
}
TRACES = {"celo": "celo_phase2_pretrained", "celo_adam": "celo_adam_pretrained"}


def _reference(*parts):
    path = REFERENCE.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{parts[-1]} of published weights is not there: {path}")
    return path


@pytest.mark.parametrize("name", ANCHORS)
def test_published_weights_have_their_anchors(name):
    path = _reference("weights", name, "theta.state")
    optimizer, theta = l2o.load_theta(path)
    assert (optimizer.name, optimizer.arguments) == (name, l2o.make(name).arguments)
    size = sum(x.size for x in jax.tree.leaves(theta))
    assert size == PUBLISHED_SIZES[name][0]
    for key, anchor in ANCHORS[name].items():
        part, leaf = key.split("/")
        x = theta[part][leaf]
        if isinstance(anchor, tuple):  # a row of groups that are one array here
            row, anchor = anchor
            x = x[:, row]
        np.testing.assert_allclose(np.mean(np.abs(x)), anchor, rtol=2e-6)


@pytest.mark.parametrize("name", TRACES)
def test_published_weights_follow_the_trace(name, monkeypatch):
    """The optimizer and theta are those of the file, not of the trace."""
    path = _reference("weights", name, "theta.state")
    trace = _reference("traces", "jax", f"{TRACES[name]}.npz")
    script = ROOT / "scripts" / "check_traces.py"
    spec = importlib.util.spec_from_file_location("check_traces", script)
    check_traces = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_traces)
    optimizer, theta = l2o.load_theta(path)
    monkeypatch.setattr(check_traces, "from_config", lambda cls, config: optimizer)
    monkeypatch.setattr(check_traces, "from_tree", lambda tree, optimizer: theta)
    found = check_traces.differences(check_traces.replay(trace))
    for tensor, (difference, tolerance, moved) in found.items():
        assert difference <= tolerance, tensor
        assert moved > 5 * tolerance, tensor
