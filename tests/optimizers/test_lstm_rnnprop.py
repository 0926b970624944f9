"""The LSTM and RNNprop of Open-L2O and MS4L2O against slow NumPy versions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_open_l2o import (
    SHAPES,
    assert_close,
    random_problem,
    run_of,
    slow_linear,
    slow_stack,
    states_of_coordinate,
    wide,
)

import l2o
from l2o.optimizers._lstm import log_and_sign


def _assert_every_coordinate(first, path, theta, layers, slow):
    """`slow(name, index, hidden, cell)` yields one coordinate's update per step."""
    for name, shape in SHAPES.items():
        for index in range(int(np.prod(shape))):
            hidden, cell = states_of_coordinate(first.lstm, name, index)
            expected = list(slow(name, index, hidden, cell))
            actual = [np.ravel(updates[name])[index] for updates, _ in path]
            assert_close(actual, expected, message=f"{name} {index}")
            found = states_of_coordinate(path[-1][1].lstm, name, index)
            for state, slow_state in zip(found, (hidden, cell)):
                for x, y in zip(state, slow_state):
                    assert_close(x, y)


@pytest.mark.parametrize(
    ("arguments", "forget_bias"),
    [
        ({}, 1),
        (
            {
                "preprocess_scale": 7,
                "step_mult": 0.5,
                "hidden_layers": 1,
                "hidden_size": 3,
            },
            1,
        ),
        ({"preprocess": "identity", "step_mult": 1, "hidden_layers": 3}, 1),
    ],
    ids=["default", "one_layer", "identity"],
)
def test_lstm_equals_its_slow_form(arguments, forget_bias):
    optimizer = l2o.lstm(**arguments)
    theta, params, grads = random_problem(optimizer)
    first, path = run_of(optimizer, theta, params, grads)
    assert all(np.all(x == 0) for x in jax.tree.leaves(first))
    arguments = optimizer.arguments
    theta, k = wide(theta), arguments["preprocess_scale"]

    def slow(name, index, hidden, cell):
        for grad in grads:
            g = np.float64(np.ravel(grad[name])[index])
            x = [max(np.log(abs(g) + 2**-23) / k, -1), np.clip(g * np.exp(k), -1, 1)]
            x = [g] if arguments["preprocess"] == "identity" else x
            x = slow_stack(
                theta, arguments["hidden_layers"], x, hidden, cell, forget_bias
            )
            yield arguments["step_mult"] * slow_linear(theta["linear"], x)[0]

    _assert_every_coordinate(first, path, theta, arguments["hidden_layers"], slow)


def test_log_and_sign_at_known_gradients():
    grads = jnp.float32([0, 1e-5, -1e-3, np.exp(-5), -0.1, 1, -np.exp(10)])
    log, sign = log_and_sign(grads, 5.0)
    # At e^-5 the epsilon still shows.
    expected = [-1, -1, -1, np.log(np.exp(-5) + 2**-23) / 5, np.log(0.1) / 5, 0, 2]
    np.testing.assert_allclose(log, expected, rtol=1e-6, atol=1e-7)
    expected = [0, 1e-5 * np.exp(5), -1e-3 * np.exp(5), 1, -1, 1, -1]
    np.testing.assert_allclose(sign, expected, rtol=2e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"variant": "ms4l2o"},
        {"b1": 0.5, "b2": 0.99, "step_mult": 2.0, "hidden_layers": 1, "hidden_size": 3},
        {"variant": "ms4l2o", "step_mult": 2.0, "state_scale": 1.0, "seed": 3},
    ],
    ids=["open_l2o", "ms4l2o", "decays", "ms4l2o-state"],
)
def test_rnnprop_equals_its_slow_form(arguments):
    optimizer = l2o.rnnprop(**arguments)
    theta, params, grads = random_problem(optimizer)
    first, path = run_of(optimizer, theta, params, grads)
    assert path[-1][1].count == len(grads)
    arguments, theta = optimizer.arguments, wide(theta)
    b1, b2 = arguments["b1"], arguments["b2"]
    torch = arguments["variant"] == "ms4l2o"
    step = arguments["step_mult"] or (0.1 if torch else 0.01)

    def slow(name, index, hidden, cell):
        m = v = 0
        for t, grad in enumerate(grads, 1):
            g = np.float64(np.ravel(grad[name])[index])
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            root = np.sqrt(v / (1 - b2**t)) + 1e-8
            m_ratio, g_ratio = m / (1 - b1**t) / root, g / root
            x = [g_ratio, m_ratio] if torch else [m_ratio, g_ratio]
            x = slow_linear(theta["linear_in"], np.array(x))
            x = np.where(x > 0, x, np.expm1(x))
            x = slow_stack(
                theta, arguments["hidden_layers"], x, hidden, cell, 1 - torch
            )
            out = np.tanh(slow_linear(theta["linear_out"], x)[0])
            yield -step * out if torch else step * out

    _assert_every_coordinate(first, path, theta, arguments["hidden_layers"], slow)


def test_both_variants_of_rnnprop_move_by_their_published_bounds():
    for variant, bound in (("open_l2o", 0.01), ("ms4l2o", 0.1)):
        optimizer = l2o.rnnprop(variant=variant)
        theta = optimizer.init_theta(jax.random.key(0))
        theta["linear_out"] = {"w": jnp.zeros((20, 1)), "b": jnp.full(1, 20.0)}
        _, path = run_of(optimizer, theta, jnp.ones(2), [jnp.ones(2)])
        sign = 1 if variant == "open_l2o" else -1
        np.testing.assert_allclose(path[0][0], sign * bound, rtol=1e-6)
