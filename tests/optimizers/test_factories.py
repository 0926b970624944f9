"""Every factory: its arguments, theta, states, what it needs and says."""

import doctest
import importlib
import inspect
import json
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import GRADS, LOSS, PARAMS, assert_trees_close
from helpers import momenta

import l2o
from l2o.rule._network import init_mlp


def test_arguments_rebuild_the_optimizer(case):
    optimizer = case.optimizer
    arguments = json.loads(json.dumps(optimizer.arguments))
    if not optimizer.name:
        assert not arguments  # `mup`, whose multipliers may be a function
        return
    factories = {**l2o.factories(), **l2o.wrapper_factories()}
    assert set(arguments) == set(l2o.defaults_of(factories[optimizer.name]))
    rebuilt = l2o.make(optimizer.name, **arguments)
    assert (rebuilt.name, rebuilt.arguments) == (optimizer.name, optimizer.arguments)
    assert_trees_close(
        rebuilt.init_theta(jax.random.key(0)), case.theta, rtol=0, atol=0
    )


def test_theta_is_float32_whatever_the_default_precision(case):
    for x64 in (False, True):
        with jax.enable_x64(x64):
            theta = jax.eval_shape(case.optimizer.init_theta, jax.random.key(0))
        assert {x.dtype for x in jax.tree.leaves(theta)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [(l2o.mlp(), 1762), (l2o.small_fc(), 197), (l2o.small_fc(hidden_size=32), 2409)],
    ids=["mlp", "small_fc", "small_fc-32"],
)
def test_theta_has_the_published_size(optimizer, size):
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == size


def test_networks_start_with_truncated_normal_weights():
    theta = init_mlp(jax.random.key(0), [100, 50, 2])
    assert jax.tree.map(jnp.shape, theta) == {
        **{"w0": (100, 50), "w1": (50, 2)},
        **{"b0": (50,), "b1": (2,)},
    }
    assert 0.19 < np.abs(theta["w0"]).max() <= 0.2
    # A normal distribution cut at two deviations keeps 0.8796 of its deviation.
    np.testing.assert_allclose(np.std(theta["w0"]), 0.08796, rtol=0.03)
    np.testing.assert_array_equal(theta["b0"], 0)


@pytest.mark.parametrize(
    ("optimizer", "matrix", "vector"),
    [
        # Six momenta.
        (l2o.mlp(), 24 * 40, 24 * 40),
        # Three momenta, a second moment; three factored ones of rows and columns.
        (l2o.small_fc(), 16 * 40 + 12 * (8 + 5), 28 * 40 + 12),
    ],
    ids=["mlp", "small_fc"],
)
def test_state_has_the_documented_size(optimizer, matrix, vector):
    theta = optimizer.init_theta(jax.random.key(0))
    for shape, size in (((8, 5), matrix), ((40,), vector)):
        state = optimizer.bind(theta).init(jnp.ones(shape))
        # The counts of updates and of skipped steps take four each.
        assert sum(x.nbytes for x in jax.tree.leaves(state)) - 8 == size
    state = optimizer.bind(theta).init(jnp.ones((8, 5), jnp.bfloat16))
    assert {x.dtype.name for x in momenta(state)} == {"bfloat16"}


def test_init_theta_under_vmap(case):
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.eval_shape(jax.vmap(case.optimizer.init_theta), keys)
    for x, one in zip(jax.tree.leaves(many), jax.tree.leaves(case.theta)):
        assert x.shape == (2, *one.shape)


@pytest.mark.parametrize("num_steps", [None, 7])
def test_bind_accepts_a_horizon(case, num_steps):
    if num_steps is None and "num_steps" in case.optimizer.needs:
        remedy = r"needs the length .*`optimizer\.bind\(theta, num_steps=\.\.\.\)`"
        with pytest.raises(ValueError, match=remedy):
            case.optimizer.bind(case.theta)
        return
    tx = case.optimizer.bind(case.theta, num_steps=num_steps)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    jax.eval_shape(lambda g, p: tx.update(g, tx.init(p), p, value=0.5), PARAMS, PARAMS)


def test_bind_accepts_a_traced_horizon(case):
    if case.optimizer.name == "extend_horizon":
        pytest.skip("the length of the run decides what is compiled")

    def update(num_steps):
        tx = case.optimizer.bind(case.theta, num_steps=num_steps)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=0.5)

    jax.eval_shape(update, jnp.int32(7))


def test_make_names_what_is_known():
    with pytest.raises(
        ValueError, match=r"unknown learned optimizer 'x'; known: .*mlp"
    ):
        l2o.make("x")
    with pytest.raises(
        ValueError, match=r"mlp has no argument 'x'; known: hidden_size"
    ):
        l2o.make("mlp", x=1)


@pytest.mark.parametrize("name", l2o.factories())
def test_factory_is_documented(name):
    doc = inspect.getdoc(l2o.factories()[name])
    for part in (".. math::", "Args:", "Example:", ">>> ", "Source:"):
        assert part in doc, part


def test_doctests_pass():
    results = {}
    others = ("l2o.tasks", "l2o.meta_train", "l2o.checkpoints")  # have theirs tested
    for module in pkgutil.walk_packages(
        l2o.__path__, "l2o.", onerror=lambda name: None
    ):
        if not module.name.startswith(others):
            results[module.name] = doctest.testmod(importlib.import_module(module.name))
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 2 * len(
        l2o.factories()
    )


@pytest.mark.parametrize("missing", ["params", "value"])
def test_what_is_missing_names_the_call_to_write(case, missing):
    state = case.tx.init(PARAMS)
    given = {"params": PARAMS, "value": LOSS} | {missing: None}
    if missing not in case.optimizer.needs:
        case.tx.update(GRADS[0], state, **given)
        return
    what = {"params": "the current parameters", "value": "the loss"}[missing]
    remedy = (
        rf"needs {what}: call "
        r"`updates, state = tx\.update\(grads, state, params, value=loss\)`"
    )
    with pytest.raises(ValueError, match=remedy):
        case.tx.update(GRADS[0], state, **given)
