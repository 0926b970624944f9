"""Folders that older versions wrote: other names, and numbers that were not there."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import l2o

OPTIMIZER = l2o.small_fc(hidden_size=3, hidden_layers=1, momentum_decays=(0.9,))
WEIGHTS, CARD = "model.safetensors", "config.json"


def _theta(optimizer):
    """Nothing zero, so that a lost or permuted array shows."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.01 * rng.standard_normal(x.shape), x.dtype),
        optimizer.init_theta(jax.random.key(0)),
    )


OLDER = {
    "celo2_base": {"layout": ("factoring", "stable"), "step_mult": ("rmsmult", 0.5)},
    "clip_gradients": {"gradient_bound": ("bound", 0.5)},
    "lstm": {"hidden_layers": ("layers", 1)},
    "normalized_velo": {"layout": ("factoring", "native")},
}
NAMES_OF_OLD = {"clip_gradients": "clip", "normalized_velo": "celo2_velo"}


@pytest.mark.parametrize("name", OLDER)
def test_a_folder_of_an_older_version_loads(name, tmp_path):
    """With the names that optimizers and arguments had."""
    arguments = {"optimizer": OPTIMIZER} if name == "clip_gradients" else {}
    if name == "lstm":
        arguments = {"hidden_layers": 1}
    optimizer = l2o.wrapper_factories().get(name, l2o.factories().get(name))(
        **arguments
    )
    theta = _theta(optimizer)
    folder = l2o.save(tmp_path / "old", optimizer, theta)
    card = json.loads((folder / CARD).read_text())
    card["optimizer"]["name"] = NAMES_OF_OLD.get(name, name)
    recorded = card["optimizer"]["arguments"]
    for new, (old, value) in OLDER[name].items():
        del recorded[new]
        recorded[old] = value
    (folder / CARD).write_text(json.dumps(card))
    loaded, found = l2o.load_unbound(folder)
    assert loaded.name == name
    jax.tree.map(np.testing.assert_array_equal, found, theta)
    for new, (_, value) in OLDER[name].items():
        now = {"stable": "jax", "native": "jax_native"}.get(value, value)
        assert loaded.arguments[new] == now
    if name == "celo2_base":  # what the user gives stands over the older name
        changed, _ = l2o.load_unbound(folder, step_mult=0.25)
        assert changed.arguments["step_mult"] == 0.25


@pytest.mark.parametrize("wrapper", [None, l2o.nominal])
@pytest.mark.parametrize("given", [{}, {"settle": 0.5}])
def test_a_folder_from_before_a_number_of_theta_loads(wrapper, given, tmp_path):
    """The number is what its absence means, or what is given."""
    optimizer = l2o.learnable_muon()
    inner = optimizer if wrapper is None else wrapper(optimizer)
    folder = l2o.save(tmp_path / "old", inner, _theta(inner))
    name = "learned/settle" if wrapper is None else "learned/learned/settle"
    weights = safetensors.numpy.load_file(folder / WEIGHTS)
    del weights[name]
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(weights))
    card = json.loads((folder / CARD).read_text())
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    card["weights"]["sha256"] = digest
    recorded = card["optimizer"]["arguments"]
    del (recorded if wrapper is None else recorded["learned"]["arguments"])["settle"]
    (folder / CARD).write_text(json.dumps(card))
    _, theta = l2o.load_unbound(folder, **given)
    for key in name.split("/"):
        theta = theta[key]
    assert theta == given.get("settle", 0.0)
