"""Rates, lengths of runs and types of arguments: obeyed, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import FACTORIES

import l2o

RATED = [
    name
    for name, factory in l2o.factories().items()
    if "learning_rate" in l2o.defaults_of(factory)
]
BAD_RATES = [None, "0.1", float("nan"), float("inf"), -0.1, True, [0.1], jnp.ones(2)]


@pytest.mark.parametrize("name", RATED)
def test_learning_rates_are_checked_once(name):
    for bad in BAD_RATES:
        message = f"{name} needs learning_rate to be a finite number >= 0"
        with pytest.raises(ValueError, match=message):
            l2o.make(name, learning_rate=bad)
    for good in (0.1, np.float32(0.1), jnp.float32(0.1), 1):
        optimizer = l2o.make(name, learning_rate=good)
        assert isinstance(optimizer.arguments["learning_rate"], float | int)


@pytest.mark.parametrize("name", RATED)
def test_schedules_are_obeyed_or_refused(name):
    schedule = optax.linear_schedule(0.1, 0.0, 2)
    try:
        optimizer = l2o.make(name, learning_rate=schedule)
    except ValueError as error:
        assert name in ("learnable_muon", "nn_adam")
        assert "schedule" in str(error) or "number" in str(error)
        return
    constant = l2o.make(name, learning_rate=0.1)
    params = {"w": jnp.ones((3, 2))}

    def updates(optimizer):
        tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
        state = tx.init(params)
        for _ in range(3):
            update, state = tx.update(params, state, params)
            yield np.asarray(update["w"])

    for share, scheduled, plain in zip(
        (1.0, 0.5, 0.0), updates(optimizer), updates(constant), strict=True
    ):
        np.testing.assert_allclose(scheduled, share * plain, rtol=1e-5, atol=1e-9)


BAD_STEPS = ["1000", float("nan"), float("inf"), 0, -3, 1.5, None, True]


RUNS = {x: y for x, y in FACTORIES.items() if "num_steps" in y.needs}
ANYTIME = {
    "learnable_muon": l2o.learnable_muon(),
    "small_fc": l2o.small_fc(schedule="cosine"),
    "celo2_base": l2o.celo2_base(schedule="cosine"),
}


@pytest.mark.parametrize("name", {**RUNS, **ANYTIME})
def test_lengths_of_runs_are_checked(name):
    optimizer = {**RUNS, **ANYTIME}[name]
    theta = jax.tree.map(
        lambda x: jnp.zeros(x.shape),
        jax.eval_shape(optimizer.init_theta, jax.random.key(0)),
    )
    for bad in BAD_STEPS:
        if bad is None and name in ANYTIME:
            continue
        with pytest.raises(ValueError, match=r"num_steps"):
            optimizer.bind(theta, num_steps=bad)
    for good in (3, 3.0, np.int64(3), jnp.int32(3)):
        optimizer.bind(theta, num_steps=good)
    with pytest.raises(ValueError, match=r"l2o\.load needs num_steps"):
        l2o.load("small_fc_digits", num_steps="1000")


@pytest.mark.parametrize("name", {**l2o.factories(), **l2o.wrapper_factories()})
def test_arguments_of_a_wrong_type_are_refused(name):
    factory = {**l2o.factories(), **l2o.wrapper_factories()}[name]
    parts = {"optimizer", "learned", "direction", "magnitude"}
    parameters = l2o.defaults_of(factory)
    given = {k: FACTORIES["learnable_sgd"] for k in parameters if k in parts}
    if "decay_per_step" in parameters:
        given["decay_per_step"] = 0.1
    for argument in parameters.keys() - parts:
        with pytest.raises(ValueError, match=r"."):
            factory(**{**given, argument: object()})


def test_hyper_parameters_can_be_injected():
    params = {"w": jnp.ones((3, 2))}
    inject = optax.inject_hyperparams(l2o.load)
    rates = {"learning_rate": 0.02, "weight_decay": 0.5}
    tx = inject("adaptive_muon", num_steps=50, **rates)
    state = tx.init(params)
    assert set(state.hyperparams) == {"num_steps", *rates}
    updates, state = jax.jit(tx.update)(params, state, params)
    plain = l2o.load("adaptive_muon", num_steps=50, **rates)
    expected, _ = plain.update(params, plain.init(params), params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5)
    state.hyperparams["learning_rate"] = jnp.float32(0.0)
    updates, _ = jax.jit(tx.update)(params, state, params)
    np.testing.assert_array_equal(updates["w"], 0)
