"""muP: multipliers of steps that follow the shapes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, assert_close
from probe import GRADS, PARAMS, SHAPES, SMALL_FC, C, bound, steps

import l2o


@pytest.mark.parametrize(
    "multipliers", [C, lambda p: {k: jnp.float32(C[k]) for k in p}], ids=["tree", "fn"]
)
def test_mup_multiplies_the_steps(multipliers):
    optimizer = l2o.mup(SMALL_FC, multipliers)
    assert (optimizer.name, optimizer.needs) == ("", ("params",))
    plain = bound(SMALL_FC)
    alone = plain.init(PARAMS)
    for p, g, _, updates, state in steps(bound(optimizer)):
        u, alone = plain.update(g, alone, p)
        assert_close(updates, {k: C[k] * u[k] for k in SHAPES})
        assert_close(state, alone)
    low = optax.tree.cast(PARAMS, jnp.bfloat16)
    tx = bound(optimizer)
    updates, _ = tx.update(low, tx.init(low), low)
    assert {x.dtype.name for x in updates.values()} == {"bfloat16"}


def test_mup_refuses_another_structure():
    tx = bound(l2o.mup(SMALL_FC, {"w": 1.0, "b": 1.0}))
    remedy = r"mup needs one multiplier per parameter: .*'b'.*'w'.*, the parameters .*s"
    with pytest.raises(ValueError, match=remedy):
        tx.update(GRADS[0], tx.init(PARAMS), PARAMS)


def test_mup_multipliers_follow_the_shapes():
    def model(n):
        shapes = {
            "embedding": (100, n),
            "dense": (n, 4 * n),
            "conv": (3, 3, n, 2 * n),
            "first_conv": (3, 3, 3, n),
            "heads": (n, n // 4, 4),
            "readout": (n, 10),
            "bias": (n,),
            "scale": (),
        }
        return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    hidden = ("dense", "conv", "heads")
    expected = {k: 0.25 if k in hidden else 1.0 for k in model(64)}
    assert l2o.mup_multipliers(model(64), model(16)) == expected
    doubled = {k: 0.5 if k in hidden else 1.0 for k in model(64)}
    assert l2o.mup_multipliers(model(64), model(16), hidden_lr_mult=2.0) == doubled
    assert set(l2o.mup_multipliers(model(16), model(16)).values()) == {1.0}
    one = jax.ShapeDtypeStruct((3, 1, 1), jnp.float32)
    assert l2o.mup_multipliers(np.ones((3, 5, 7)), one) == 1 / 5
    three = {"a": [np.ones((2, 3, 4))]}
    with pytest.raises(ValueError, match=r"\['a'\]\[0\] grew along 3 axes, muP knows"):
        l2o.mup_multipliers(three, {"a": [np.ones((1, 1, 1))]})
    with pytest.raises(
        ValueError, match=r"\['a'\]\[0\] has shape \(2, 3, 4\) and base"
    ):
        l2o.mup_multipliers(three, {"a": [np.ones((2, 3))]})


def hidden_change(width, scaled):
    """How far three steps of mulo move the second hidden layer, per coordinate."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 8)), rng.standard_normal((16, 1))
    shapes = {"in": (8, width), "mid": (width, width), "out": (width, 1)}
    # The readout starts at zero and its output is divided by the width.
    start = {
        k: jnp.float32((k != "out") * rng.standard_normal(s) / math.sqrt(s[0]))
        for k, s in shapes.items()
    }

    def hidden(p):
        return jax.nn.relu(x @ p["in"]) @ p["mid"]

    def loss(p):
        return jnp.mean((jax.nn.relu(hidden(p)) @ p["out"] / width - y) ** 2)

    multipliers = {"in": 1.0, "mid": 1 / width, "out": 1.0}
    optimizer = l2o.mup(l2o.mulo(), multipliers) if scaled else l2o.mulo()
    theta = optimizer.init_theta(jax.random.key(3))
    tx = optimizer.bind(theta)
    params, state = start, tx.init(start)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    # Of the middle matrix alone: that of the first layer is the same for every width.
    moved = {**start, "mid": params["mid"]}
    return float(jnp.sqrt(jnp.mean((hidden(moved) - hidden(start)) ** 2)))


def test_mup_makes_the_change_of_activations_independent_of_width():
    narrow, wide = (hidden_change(n, scaled=True) for n in (16, 128))
    assert 0.6 < wide / narrow < 1.6
    narrow, wide = (hidden_change(n, scaled=False) for n in (16, 128))
    assert wide / narrow > 4


def test_mup_is_loaded_with_its_architecture(tmp_path):
    optimizer = l2o.grafted(l2o.mup(SMALL_FC, C), l2o.learnable_sgd())
    theta = optimizer.init_theta(KEY)
    folder = l2o.save(tmp_path / "saved", optimizer, theta)
    with pytest.raises(ValueError, match="give its architecture, `l2o.load"):
        l2o.load(folder)
    tx = l2o.load(folder, optimizer=optimizer)
    for (*_, u, _), (*_, v, _) in zip(steps(tx), steps(optimizer.bind(theta))):
        assert_close(u, v, rtol=0, atol=0)


def test_mup_refuses_what_is_no_number():
    with pytest.raises(ValueError, match=r"multipliers\['w'\] to be a finite number"):
        l2o.mup(l2o.mulo(), {"w": lambda param: 1.0})
