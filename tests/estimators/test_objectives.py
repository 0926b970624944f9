"""Objectives: the end, the minimum, weighted means, splits, metrics, bounds."""

import math

import closed_forms as cf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_estimator import (
    DETERMINISTIC,
    ESTIMATORS,
    FULL,
    KINDS,
    THETA,
    UNBIASED,
    estimator_of,
)

from l2o import meta_train as mt
from l2o.meta_train import Objective, constant, log_uniform


def _gradient(name, objective, *, length=5, truncation=2, particles=4000, repeats=20):
    """Mean over whole episodes of the estimate, its standard error, last Info."""
    if name in DETERMINISTIC:
        particles, repeats = 2, 1
    estimator = estimator_of(
        name,
        cf.problem(),
        constant(length),
        truncation=truncation,
        particles=particles,
        objective=objective,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), THETA)
    windows = 1 if name in FULL else -(-length // truncation)
    means = []
    for i in range(repeats):
        gradients = []
        for w in range(windows):
            key = jax.random.fold_in(jax.random.key(i), w)
            gradient, state, info = estimate(key, THETA, state, ())
            gradients.append(float(gradient))
        means.append(np.mean(gradients))
    error = np.std(means, ddof=1) / math.sqrt(repeats) if repeats > 1 else 1e-5
    return np.mean(means), error, info


# With the training loss, before each update, an episode of 5 ends with the loss after 4
# updates; evaluated on fresh batches of a split, after 5.
@pytest.mark.parametrize(
    "objective, updates, factor",
    [
        (Objective(over="last"), 4, 1),
        (Objective(over="telescoping"), 4, 1),
        (Objective(split="inner_valid", over="last"), 5, 1),
        (Objective(split="test", over="telescoping", samples=2), 5, 1),
        (Objective(metric="twice", over="last"), 4, 2),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("backprop", "full_es", "pes")
        else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in UNBIASED
    ],
)
def test_the_end_as_objective(name, objective, updates, factor):
    form = ESTIMATORS[name][2]
    mean, error, _ = _gradient(name, objective)
    assert abs(mean - factor * form(updates, 2)) < 4 * error
    assert abs(form(updates, 2)) > 8 * error


@pytest.mark.parametrize("name", UNBIASED)
def test_a_mean_in_which_later_steps_count_more(name):
    # Losses after 0 to 3 updates, with weights 1, 3, 5, 7 over 4.
    form = ESTIMATORS[name][2]
    mean, error, _ = _gradient(name, Objective(over="late"), length=4)
    exact = sum((2 * t + 1) / 4 * form(t, 2) for t in range(1, 4)) / 4
    assert abs(mean - exact) < 4 * error
    assert abs(exact) > 8 * error


@pytest.mark.parametrize("name", ["full_es", "backprop", "pes", "truncated_backprop"])
def test_mean_over_fresh_batches(name):
    form = ESTIMATORS[name][2]
    objective = Objective(split="inner_valid")
    mean, error, _ = _gradient(name, objective, length=4)
    if name == "truncated_backprop":  # after the update: 1 to K updates in a window
        form = lambda t, k: cf.exact(t) * ((t - 1) % k + 1) / t
    assert abs(mean - sum(form(t, 2) for t in (1, 2, 3, 4)) / 4) < 4 * error


def test_the_metric_is_taken_from_the_split():
    # "split" is x on inner_valid, 0 elsewhere: x after 3 updates is x0 r^3.
    valid = Objective(split="inner_valid", metric="split", over="last")
    mean, _, info = _gradient("backprop", valid, length=3)
    np.testing.assert_allclose(mean, -3 * cf.A * cf.X0 * cf.R**2, rtol=1e-5)
    np.testing.assert_allclose(info.meta_loss, cf.X0 * cf.R**3, rtol=1e-5)
    train = valid._replace(split="outer_valid")
    assert _gradient("backprop", train, length=3)[0] == 0


@pytest.mark.parametrize("name", FULL)
def test_the_minimum_as_objective(name):
    # With a learning rate that overshoots, the loss grows: the minimum is the first.
    theta = jnp.float32(3 / cf.A)  # r = -2
    estimator = estimator_of(
        name,
        cf.problem(),
        constant(4),
        truncation=4,
        objective=Objective(split="train", over="min"),
        **({"std": 1e-3} if name == "full_es" else {}),
        particles=3000 if name == "full_es" else 1,
    )
    gradient, _, info = estimator.estimate(jax.random.key(0), theta, (), ())
    np.testing.assert_allclose(info.meta_loss, cf.C * 4, rtol=1e-2)
    exact = -2 * cf.A * cf.C * -2
    np.testing.assert_allclose(
        gradient, exact, rtol=0.15 if name == "full_es" else 1e-5
    )


def test_random_lengths_of_full_unrolls():
    # Steps past the drawn length cost nothing and count nothing.
    estimator = mt.backprop(cf.problem(), log_uniform(2, 9), particles=1, levels=1)
    estimate = jax.jit(estimator.estimate)
    seen = set()
    for i in range(12):
        gradient, _, info = estimate(jax.random.key(i), THETA, (), ())
        length = int(info.inner_steps)
        expected = sum(cf.exact(t) for t in range(1, length)) / length
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
        seen.add(length)
    assert len(seen) > 3


def test_normalisation_by_the_task_and_by_the_objective():
    # The loss stays near c = 1.44, above the bound.
    theta = jnp.float32(1e-3)
    bound = lambda loss: jnp.minimum(loss, 0.5)
    for name in KINDS:
        for problem, objective in (
            (cf.problem(bound), Objective()),
            (cf.problem(), Objective(normalize=bound)),
        ):
            estimator = estimator_of(
                name,
                problem,
                constant(2),
                truncation=2,
                particles=4,
                objective=objective,
                **({"std": 1e-3} if "std" in ESTIMATORS[name][1] else {}),
            )
            state = estimator.init(jax.random.key(0), theta)
            gradient, _, info = jax.jit(estimator.estimate)(
                jax.random.key(1), theta, state, ()
            )
            assert info.meta_loss == 0.5 and gradient == 0, name
