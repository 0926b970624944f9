"""Weights in PyLO's folders, read and written."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    CONFIG,
    GROUPS,
    PYLO,
    PYLO_VELO,
    SMALL,
    WEIGHTS,
    assert_same,
    edit_arrays,
    save_pylo,
    some_theta,
    write_flax,
)

import l2o
from l2o.files._trees import to_tree

# PyLO's folders.


@pytest.mark.parametrize("name", PYLO)
def test_folder_of_pylo_round_trip_is_exact(tmp_path, name):
    folder = tmp_path / f"my-{name}"
    theta = save_pylo(folder, PYLO[name])
    assert_same(l2o.load_unbound(folder), PYLO[name], theta)
    folder = folder.rename(tmp_path / "w")
    assert_same(l2o.load_unbound(folder, optimizer=name), PYLO[name], theta)


def test_layout_of_pylo_is_its_own(tmp_path):
    theta = save_pylo(tmp_path, l2o.elo())
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
    save_pylo(tmp_path, optimizer)
    assert json.loads((tmp_path / folder / CONFIG).read_text()) == config


def test_small_fc_becomes_mulo(tmp_path):
    optimizer = l2o.small_fc(hidden_size=3)
    theta = save_pylo(tmp_path / "mulo", optimizer)
    assert_same(l2o.load_unbound(tmp_path / "mulo"), l2o.mulo(hidden_size=3), theta)


def test_mulo_without_decays_has_those_of_pylo(tmp_path):
    theta = save_pylo(tmp_path, PYLO["mulo"])
    (tmp_path / "decays.json").unlink()
    _, loaded = l2o.load_unbound(tmp_path, optimizer="mulo")
    np.testing.assert_array_equal(loaded["rms_decays"], np.float32([0.01079706]))
    np.testing.assert_array_equal(loaded["nn"]["w0"], theta["nn"]["w0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"decays.json does not hold lists of numbers by name, expected mom"),
        ("{", r"decays.json is not valid JSON"),
        ('{"rms_decays": "x"}', r"decays.json does not hold lists of numbers by n"),
        ('{"rms_decays": 0.1}', r"decays.json does not hold lists of numbers by n"),
        ('{"rms_decays": [1e999]}', r"decays.json: rms_decays is NaN or infinite in"),
        ('{"rms_decays": [1, 2]}', r"mulo have rms_decays of shape \(2,\), expected"),
        ('{"rates": [0.1]}', r"decays.json .*, expected momentum_decays, rms_decays,"),
        ('{"network.input.bias": [0.1]}', r"decays.json .*, expected momentum_decays"),
    ],
)
def test_decays_that_are_not_understood_are_named(tmp_path, text, message):
    save_pylo(tmp_path, PYLO["mulo"])
    (tmp_path / "decays.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        l2o.load(tmp_path, optimizer="mulo")


@pytest.mark.parametrize("half", ["VeLO_RNN", "VeLO_MLP"])
def test_either_half_of_velo_loads_both(tmp_path, half, monkeypatch):
    theta = save_pylo(tmp_path, PYLO_VELO)
    assert_same(l2o.load_unbound(tmp_path / half), PYLO_VELO, theta)
    monkeypatch.chdir(tmp_path / half)
    assert_same(l2o.load_unbound("."), PYLO_VELO, theta)


@pytest.mark.parametrize("half", ["VeLO_RNN", "VeLO_MLP"])
def test_missing_half_of_velo_is_named(tmp_path, half):
    save_pylo(tmp_path, PYLO_VELO)
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
    theta = save_pylo(tmp_path, PYLO_VELO)

    def mixed(arrays):
        for name in list(arrays):
            scratch = name.replace("_.", ".") if "_." in name else name[:-1]
            arrays[scratch] = np.zeros_like(arrays[name][0])

    edit_arrays(tmp_path / "VeLO_MLP", mixed)
    arrays = safetensors.numpy.load_file(tmp_path / "VeLO_MLP" / WEIGHTS)
    assert {"input_weights", "hidden_bias.0", "output_bias"} < set(arrays)
    assert_same(l2o.load_unbound(tmp_path / "VeLO_RNN"), PYLO_VELO, theta)


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
    save_pylo(tmp_path, PYLO.get(name, PYLO_VELO))
    folder = tmp_path / "VeLO_RNN" if name == "velo" else tmp_path
    edit_arrays(folder, spoil)
    with pytest.raises(ValueError, match=rf"the weights of PyLO's .*{message}"):
        l2o.load(folder, optimizer=name)


@pytest.mark.parametrize("name", ["w", "velo", "celo", "mulo-elo", "simulo"])
def test_folder_whose_name_tells_nothing_asks_for_one(tmp_path, name):
    """Neither do the folders above it, such as a home directory."""
    folder = tmp_path / "elo" / "mulo" / name
    save_pylo(folder, PYLO["elo"])
    message = r"name one, `l2o.load\(path, optimizer=...\)` with 'elo' or 'mulo'"
    with pytest.raises(ValueError, match=rf"{name} fits several.*{message}"):
        l2o.load(folder)


def test_folders_above_do_not_make_celo2_something_else(tmp_path):
    optimizer = PYLO["celo2"]
    theta = save_pylo(tmp_path / "elo-celo2" / "w", optimizer)
    assert_same(l2o.load_unbound(tmp_path / "elo-celo2" / "w"), optimizer, theta)
    optimizer = SMALL["celo2"]
    tree = to_tree(some_theta(optimizer), optimizer)
    for folder, name in {
        "celo2-base/w": "celo2",
        "database": "celo2",
        "base": "celo2",
        "train_celo2base": "celo2_base",
        "celo2-base": "celo2_base",
        "celo2_base_seed0": "celo2_base",
    }.items():
        path = write_flax(tmp_path / folder / "theta.state", tree)
        assert l2o.load_unbound(path)[0].name == name
        assert l2o.load_unbound(path.parent)[0].name == name


@pytest.mark.parametrize(
    ("name", "wrong", "known"),
    [
        ("elo", "celo2", "elo, mulo"),
        ("celo2", "celo", "celo2, celo2_base, elo_celo2"),
        ("velo", "celo", "velo"),
    ],
)
def test_wrong_name_for_a_folder_of_pylo_is_refused(tmp_path, name, wrong, known):
    save_pylo(tmp_path, PYLO.get(name, PYLO_VELO))
    folder = tmp_path / "VeLO_RNN" if name == "velo" else tmp_path
    message = f"{folder} holds weights for {known}, not for '{wrong}'"
    with pytest.raises(ValueError, match=re.escape(message)):
        l2o.load(folder, optimizer=wrong)


def test_what_pylo_lacks_is_refused(tmp_path):
    optimizer = SMALL["celo"]
    with pytest.raises(ValueError, match=r"PyLO has no 'celo'; it has elo, mulo, .*ve"):
        l2o.save(tmp_path / "w", optimizer, some_theta(optimizer), format="pylo")
    optimizer = l2o.velo(lstm_hidden_size=3, param_inits=2, published=())
    with pytest.raises(ValueError, match=r"PyLO's VeLO has the dead mixing layer: ke"):
        l2o.save(tmp_path / "w", optimizer, some_theta(optimizer), format="pylo")
    with pytest.raises(ValueError, match=r"unknown format 'onnx'; known: l2o, pylo"):
        l2o.save(tmp_path / "w", SMALL["mlp"], some_theta(SMALL["mlp"]), format="onnx")
    assert not (tmp_path / "w").exists()
