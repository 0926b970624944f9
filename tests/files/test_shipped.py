"""What ships: its weights, its card, and the updates it makes, which do not change.

`python tests/files/test_shipped.py` records them anew; only for weights that are new.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import script

import l2o
from l2o.meta_train import Config
from l2o.tasks import held_out, task_specs

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "shipped"
SHAPES = {"dense": (6, 4), "bias": (4,), "kernel": (3, 3, 2, 4)}
STEPS = 8
NETWORKS = (
    "normalized_mixed",
    "normalized_orthogonal",
    "small_fc_digits",
    "small_fc_mixed",
)
# How an update rounds decides how the eleven bits that are kept of it round.
TOLERANCE = {
    "adaptive_muon": 1e-4,
    "muon_mixed": 1e-4,
    "muon_any_rate": 1e-3,  # of a gain of a hundred
    "muon_fast": 1e-3,
}


def trajectory(name):
    """Parameters after steps down a bowl that is noisy in a fixed way."""
    optimizer, theta = l2o.load_unbound(name)
    tx = optimizer.bind(theta, num_steps=20)
    params = {
        key: jnp.sin(jnp.arange(np.prod(shape)) * (i + 1.0)).reshape(shape)
        for i, (key, shape) in enumerate(SHAPES.items())
    }

    @jax.jit
    def step(params, state, t):
        noise = jax.tree.map(lambda p: 0.3 * jnp.cos(17 * p + t), params)
        loss = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
        grads = jax.tree.map(lambda p, n: 2 * p + n, params, noise)
        updates, state = tx.update(grads, state, params, value=loss)
        return jax.tree.map(jnp.add, params, updates), state

    state = tx.init(params)
    for t in range(STEPS):
        params, state = step(params, state, t)
    return {key: np.asarray(value).ravel().tolist() for key, value in params.items()}


def test_what_has_no_network_has_no_kernel():
    """Else its updates would have to be tested with kernels, too."""
    for name in set(l2o.shipped()) - set(NETWORKS):
        assert "nn" not in str(jax.tree.structure(l2o.load_unbound(name)[1]))


# Every file by one backend, and every kind of network by both.
TWICE = {("normalized_mixed", "xla"), ("small_fc_mixed", "xla")}
TWICE |= {("normalized_orthogonal", "native"), ("small_fc_digits", "native")}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(*x, marks=[pytest.mark.exhaustive] if x in TWICE else [])
        for x in [(name, "xla") for name in l2o.shipped()]
        + [(name, "native") for name in NETWORKS]
    ],
)
def test_it_makes_the_updates_that_it_made(name, backend):
    if backend == "native" and l2o.native_kernels() is None:
        pytest.skip("no native kernels here")
    with l2o.backend(backend):
        found = trajectory(name)
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert found.keys() == golden.keys()
    for key, value in golden.items():
        atol = TOLERANCE.get(name, 2e-6)
        np.testing.assert_allclose(found[key], value, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("name", l2o.shipped())
def test_its_card_says_how_it_was_made_and_on_nothing_held_out(name):
    card = l2o.read_card(name)["card"]
    known = {field.name for field in dataclasses.fields(Config)}
    assert card["config"].keys() <= known
    assert not card["config"].get("allow_heldout")
    assert not any(map(held_out, task_specs(card["config"]["families"]).values()))
    assert card["inner_steps"] > 0 and card["seconds"] > 0


def test_its_page_and_the_tables_are_made_from_the_cards():
    card_pages = script("docs", "card_pages")
    assert set(card_pages.ORDER) == set(l2o.shipped())
    for path, text in card_pages.pages().items():
        assert path.read_text() == text, f"card_pages.py makes another {path}"


@pytest.mark.parametrize("name", l2o.shipped())
def test_its_results_are_of_the_rule_as_it_is(name):
    card = l2o.read_card(name)["card"]
    assert card["known_failures"] and card["results"]
    assert "measured_before" not in card
    for result in card["results"]:
        assert result["suite"] == "heldout/small" and result["seeds"] >= 3


def record():
    for name in l2o.shipped():
        path = GOLDEN / f"{name}.json"
        if not path.exists():
            with l2o.backend("xla"):
                path.write_text(json.dumps(trajectory(name)) + "\n")
            print(path)


if __name__ == "__main__":
    record()
