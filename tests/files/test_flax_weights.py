"""Weights of google/learned_optimization and Celo: flax's msgpack, and gin."""

import re
from typing import Any, NamedTuple

import flax
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_files import GROUPS, NAMED, SMALL, assert_same, some_theta, write_flax

import l2o
from l2o.files._published import from_config
from l2o.files._trees import to_tree
from l2o.rule._features import FEATURES

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


# What VeLO's files from before there were configs were trained with.
PUBLISHED = ["dead_mix_layer", "bugged_next_lstm_state", "bugged_loss_features"]
BUGS = {"published": PUBLISHED}


@pytest.mark.parametrize("written_as", WRITTEN_AS)
@pytest.mark.parametrize("name", SMALL)
def test_published_file_is_read_exactly(state, name, written_as):
    optimizer = SMALL[name]
    theta = some_theta(optimizer)
    write_flax(state, WRITTEN_AS[written_as](to_tree(theta, optimizer)))
    if (name, written_as) == ("velo", "old tuple"):
        optimizer = l2o.velo(**{**optimizer.arguments, **BUGS})
    for source in (state, str(state), state.parent):
        loaded = l2o.load_unbound(source, optimizer=NAMED.get(name))
        assert_same(loaded, optimizer, theta)


def test_the_bugs_of_old_velo_files_can_be_refused(state):
    optimizer = SMALL["velo"]
    write_flax(state, (to_tree(some_theta(optimizer), optimizer), "", 0))
    loaded, _ = l2o.load_unbound(state, published=PUBLISHED[:2])
    assert loaded.arguments["published"] == PUBLISHED[:2]
    with pytest.raises(ValueError, match=r"does not fit celo\("):
        l2o.load_unbound(state, optimizer="celo")


def test_published_file_optimizes_as_its_theta_does(state):
    optimizer = SMALL["celo"]
    theta = some_theta(optimizer)
    write_flax(state, to_tree(theta, optimizer))
    params = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
    updates = []
    for tx in (l2o.load(state, num_steps=9), optimizer.bind(theta, num_steps=9)):
        updates.append(tx.update(params, tx.init(params), params, value=0.5)[0])
    np.testing.assert_array_equal(updates[0]["w"], updates[1]["w"])
    assert np.any(updates[0]["w"])


def test_file_of_google_is_called_params(tmp_path):
    optimizer = SMALL["velo"]
    theta = some_theta(optimizer)
    tree = to_tree(theta, optimizer)
    write_flax(tmp_path / "params", ParameterCheckpoint(tree, "id", 7))
    assert_same(l2o.load_unbound(tmp_path), optimizer, theta)
    (tmp_path / "params").rename(tmp_path / "params_300")
    assert_same(l2o.load_unbound(tmp_path / "params_300"), optimizer, theta)


def test_arrays_that_flax_splits_are_joined(state, monkeypatch):
    optimizer = SMALL["velo"]
    theta = some_theta(optimizer)
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    write_flax(state, to_tree(theta, optimizer))
    assert state.read_bytes().count(b"__msgpack_chunked_array__") > 10
    assert_same(l2o.load_unbound(state), optimizer, theta)


def test_bfloat16_is_read(state):
    optimizer = SMALL["celo"]
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), some_theta(optimizer))
    write_flax(state, to_tree(theta, optimizer))
    assert b"bfloat16" in state.read_bytes()
    expected = jax.tree.map(lambda x: x.astype(jnp.float32), theta)
    assert_same(l2o.load_unbound(state), optimizer, expected)


def _scalars(theta):
    """small_fc's other layout, which has one scalar per weight."""
    leaves = {}
    for name, x in theta["nn"].items():
        for index in np.ndindex(x.shape):
            leaves["_".join([name, *map(str, index)])] = np.asarray(x[index])
    return {**theta, "nn": {"~": leaves}}


def test_weights_kept_as_scalars_are_joined(state):
    optimizer = l2o.small_fc(hidden_size=11)  # sorted as text, 10 is before 2
    theta = some_theta(optimizer)
    write_flax(state, _scalars(theta))
    assert_same(l2o.load_unbound(state), optimizer, theta)


def test_missing_scalar_is_refused(state):
    tree = _scalars(some_theta(SMALL["small_fc"]))
    scalar = tree["nn"]["~"].pop("w0_3_1")
    write_flax(state, tree)
    with pytest.raises(ValueError, match=r"it lacks nn/~/w0; .*unknown nn/~/w0_0_0, "):
        l2o.load(state)
    tree["nn"] |= {"~": {**tree["nn"]["~"], "w0_3_1": scalar}, "other": scalar}
    write_flax(state, tree)
    with pytest.raises(ValueError, match=r": it has unknown nn/other$"):
        l2o.load(state)
    tree["nn"]["~"]["w0_3_1"] = "text"
    write_flax(state, tree)
    with pytest.raises(ValueError, match=r"holds no theta that l2o knows"):
        l2o.load(state)


# VeLO's tree, written down rather than computed.


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
    write_flax(state, tree)
    optimizer, theta = l2o.load_unbound(state)
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
    write_flax(state, tree)
    sizes = r"lstm_hidden_size=8, param_inits=2, hidden_size=4, hidden_layers=2"
    where = rf"{re.escape(str(state))} does not fit velo\({sizes}\): .*{message}"
    with pytest.raises(ValueError, match=where):
        l2o.load(state, num_steps=10)


def test_leaf_that_is_text_is_refused(state):
    tree = to_tree(some_theta(SMALL["nn_adam"]), SMALL["nn_adam"])
    assert np.shape(tree["per_layer_lr"]) == ()
    write_flax(state, {**tree, "per_layer_lr": "0.1"})
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
    "published": PUBLISHED,  # loss features by default there
    "momentum_decays": [0.8, 0.9, 0.95],
    "adafactor_decays": [0.7, 0.8, 0.9],
}


@pytest.fixture
def gin(tmp_path):
    write_flax(tmp_path / "params", ParameterCheckpoint(_velo_tree(8, 2), "id", 7))

    def write(text):
        (tmp_path / "config.gin").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("name", [None, "velo"])
def test_arguments_arrive_from_gin(gin, name):
    folder = gin(GIN)
    optimizer, _ = l2o.load_unbound(folder, optimizer=name)
    assert optimizer.arguments == l2o.velo(**FROM_GIN).arguments
    optimizer, _ = l2o.load_unbound(folder, optimizer=name, exp_mult=0.5, ff_mult=1.0)
    expected = l2o.velo(**{**FROM_GIN, "exp_mult": 0.5, "ff_mult": 1.0})
    assert optimizer.arguments == expected.arguments


def test_gin_of_celo_has_its_defaults(gin):
    bound = "HyperV2.param_inits = 2\nHyperV2.lstm_hidden_size = 8"
    folder = gin(f"run_train.lopt = @celo.optimizers.velo.HyperV2()\n{bound}")
    assert l2o.load_unbound(folder)[0].arguments["ff_mult"] == 1.0


def test_gin_without_an_optimizer_leaves_it_to_the_file(gin):
    optimizer, _ = l2o.load_unbound(gin("HyperV2.exp_mult = 3.0\n"))
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
            r"config.gin: velo has an ill-typed argument: rms_decays is 0.9, exp",
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
