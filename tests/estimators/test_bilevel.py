"""Hyper-parameters that are not an optimizer's, against closed forms of ridge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2o import meta_train as mt
from l2o.meta_train import Objective, constant
from l2o.tasks import Task

DIM, N, RATE = 4, 40, 0.2
VALIDATION = Objective(split="inner_valid", metric="error")


def _data():
    k_x, k_w, k_noise = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(k_x, (2, N, DIM)) * jnp.array([1.0, 0.7, 0.5, 0.3])
    w = jax.random.normal(k_w, (DIM,))
    y = x @ w + jax.random.normal(k_noise, (2, N))
    return {
        "train": {"x": x[0], "y": y[0]},
        "inner_valid": {"x": x[1], "y": y[1]},
    }


def _ridge():
    """theta: logarithms of the weight decay of each coefficient."""

    def task(theta, config, data):
        def loss(w, model_state, key, batch):
            error = jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2
            decay = jnp.sum(jnp.exp(theta) * w**2) / 2
            return error + decay, (model_state, {"error": error})

        return Task(
            init=lambda key: (jnp.zeros(DIM), ()),
            batch=lambda key, split: data[split],
            loss=loss,
        )

    return mt.learn_hyperparameters(
        lambda key: jnp.linspace(-3.0, -1.0, DIM),
        task,
        tx=optax.sgd(RATE),
        data=_data(),
        name="ridge",
    )


def _closed_form(theta):
    """Validation error at the minimum of the training loss, in float64."""
    data = jax.tree.map(lambda x: np.asarray(x, np.float64), _data())
    x, y = data["train"]["x"], data["train"]["y"]
    w = np.linalg.solve(x.T @ x / N + np.diag(np.exp(theta)), x.T @ y / N)
    valid = data["inner_valid"]
    return np.mean((valid["x"] @ w - valid["y"]) ** 2) / 2, w


def _exact(theta):
    theta = np.asarray(theta, np.float64)
    h = 1e-5
    return np.array(
        [
            (_closed_form(theta + h * e)[0] - _closed_form(theta - h * e)[0]) / (2 * h)
            for e in np.eye(DIM)
        ]
    )


@pytest.fixture(scope="module")
def ridge():
    problem = _ridge()
    return problem, problem.init_theta(jax.random.key(0))


def _estimate(estimator, problem, theta, calls=1):
    state = estimator.init(jax.random.key(0), theta)
    estimate = jax.jit(estimator.estimate)
    for i in range(calls):
        gradient, state, info = estimate(
            jax.random.key(i), theta, state, problem.data, i
        )
    return gradient, state, info


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "cg", "iterations": DIM},
        {"solver": "neumann", "iterations": 500, "step_size": RATE},
    ],
)
def test_ridge_hypergradient(ridge, options):
    problem, theta = ridge
    estimator = mt.implicit(
        problem, constant(10**6), truncation=500, objective=VALIDATION, **options
    )
    gradient, state, info = _estimate(estimator, problem, theta)
    error, w = _closed_form(np.asarray(theta))
    np.testing.assert_allclose(state.inner.params[0, 0], w, rtol=1e-4)
    np.testing.assert_allclose(info.meta_loss, error, rtol=1e-5)
    np.testing.assert_allclose(gradient, _exact(theta), rtol=2e-3, atol=1e-6)


def test_a_long_backprop_agrees(ridge):
    problem, theta = ridge
    estimator = mt.backprop(
        problem,
        constant(500),
        particles=1,
        objective=VALIDATION._replace(over="last"),
    )
    gradient, _, _ = _estimate(estimator, problem, theta)
    np.testing.assert_allclose(gradient, _exact(theta), rtol=2e-3, atol=1e-6)


def test_truncated_backprop_is_a_cut_neumann_series(ridge):
    # From the minimum, K steps of gradient descent backwards are K terms of the series.
    problem, theta = ridge
    terms = 5
    windows = 80
    truncated = mt.truncated_backprop(
        problem,
        constant(terms * windows),
        particles=1,
        truncation=terms,
        objective=VALIDATION._replace(over="telescoping"),
    )
    cut, _, _ = _estimate(truncated, problem, theta, windows)
    neumann = mt.implicit(
        problem,
        constant(10**6),
        truncation=terms * windows,
        objective=VALIDATION,
        solver="neumann",
        iterations=terms,
        step_size=RATE,
    )
    series, _, _ = _estimate(neumann, problem, theta)
    np.testing.assert_allclose(cut / windows, series, rtol=1e-3, atol=1e-7)
    # Which is biased: the cut leaves most of the flat directions out.
    assert np.abs(series - _exact(theta)).max() > 0.2 * np.abs(_exact(theta)).max()


def test_es_estimators_take_hyperparameters_too(ridge):
    problem, theta = ridge
    estimator = mt.full_es(
        problem,
        constant(60),
        particles=2000,
        std=0.01,
        objective=VALIDATION._replace(over="last"),
    )
    gradient, _, _ = _estimate(estimator, problem, theta)
    exact = _estimate(
        mt.backprop(
            problem,
            constant(60),
            particles=1,
            objective=VALIDATION._replace(over="last"),
        ),
        problem,
        theta,
    )[0]
    np.testing.assert_allclose(gradient, exact, atol=0.15 * np.abs(exact).max())


def test_damping_is_added_to_the_hessian(ridge):
    problem, theta = ridge
    damping = 0.5
    estimator = mt.implicit(
        problem,
        constant(10**6),
        truncation=500,
        objective=VALIDATION,
        damping=damping,
    )
    gradient, _, _ = _estimate(estimator, problem, theta)
    data = jax.tree.map(lambda x: np.asarray(x, np.float64), _data())
    x, valid = data["train"]["x"], data["inner_valid"]
    decay = np.exp(np.asarray(theta, np.float64))
    _, w = _closed_form(np.asarray(theta))
    b = valid["x"].T @ (valid["x"] @ w - valid["y"]) / N
    hessian = x.T @ x / N + np.diag(decay) + damping * np.eye(DIM)
    expected = -decay * w * np.linalg.solve(hessian, b)
    np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["implicit", "truncated_backprop"])
def test_outer_training_finds_the_best_decay(ridge, name):
    problem, theta = ridge
    if name == "implicit":
        estimator = mt.implicit(
            problem, constant(10**6), truncation=20, objective=VALIDATION
        )
    else:
        estimator = mt.truncated_backprop(
            problem,
            constant(10**6),
            particles=1,
            truncation=50,
            objective=VALIDATION._replace(over="telescoping"),
        )
    tx = optax.adam(0.1)
    step = jax.jit(mt.make_outer_step(estimator, tx))
    outer = mt.Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(0))
    worker = estimator.init(jax.random.key(1), theta)
    for _ in range(150):
        outer, worker, _ = step(outer, worker, problem.data)
    before = _closed_form(np.asarray(theta))[0]
    after = _closed_form(np.asarray(outer.theta))[0]
    # Where the best found by a search of this convex-ish problem is.
    best = min(
        _closed_form(np.asarray(theta) + np.array([a, b, c, d]))[0]
        for a in (-4, 0, 2, 5)
        for b in (-4, 0, 2, 5)
        for c in (-4, 0, 2, 5)
        for d in (-4, 0, 2, 5)
    )
    assert after < before - 0.8 * (before - best)


def test_weights_of_examples_find_the_wrong_labels():
    # Half of the labels are of the wrong sign; the validation split has none.
    k_x, k_w = jax.random.split(jax.random.key(3))
    x = jax.random.normal(k_x, (2, 64, 3))
    w = jax.random.normal(k_w, (3,))
    y = x @ w
    wrong = jnp.arange(64) % 2 == 0
    data = {
        "train": {"x": x[0], "y": jnp.where(wrong, -y[0], y[0]), "i": jnp.arange(64)},
        "inner_valid": {"x": x[1], "y": y[1], "i": jnp.arange(64)},
    }

    def task(theta, config, data):
        def loss(w, model_state, key, batch):
            squares = (batch["x"] @ w - batch["y"]) ** 2
            weights = jax.nn.sigmoid(theta)[batch["i"]]
            return jnp.mean(weights * squares) + 1e-3 * jnp.sum(w**2), (
                model_state,
                {"plain": jnp.mean(squares)},
            )

        return Task(
            init=lambda key: (jnp.zeros(3), ()),
            batch=lambda key, split: data[split],
            loss=loss,
        )

    problem = mt.learn_hyperparameters(
        lambda key: jnp.zeros(64), task, tx=optax.sgd(0.3), data=data
    )
    estimator = mt.implicit(
        problem,
        constant(10**6),
        truncation=20,
        objective=Objective(split="inner_valid", metric="plain"),
    )
    tx = optax.adam(0.1)
    theta = problem.init_theta(jax.random.key(0))
    step = jax.jit(mt.make_outer_step(estimator, tx))
    outer = mt.Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(0))
    worker = estimator.init(jax.random.key(1), theta)
    losses = []
    for _ in range(60):
        outer, worker, info = step(outer, worker, problem.data)
        losses.append(float(info.estimate.meta_loss))
    assert losses[-1] < 0.05 * losses[0]
    assert outer.theta[wrong].mean() < -1 < 1 < outer.theta[~wrong].mean()


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"objective": Objective()}, "needs an Objective with a split"),
        ({"solver": "lu"}, "unknown solver 'lu'; known: cg, neumann"),
        ({"solver": "neumann"}, "needs step_size > 0"),
        ({"iterations": 0}, "iterations >= 1"),
        ({"damping": -1.0}, "damping >= 0"),
        ({"particles": 0}, "particles >= 1"),
    ],
)
def test_bad_arguments(ridge, bad, match):
    with pytest.raises(ValueError, match=match):
        mt.implicit(ridge[0], constant(10), **bad)
