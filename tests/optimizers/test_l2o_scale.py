"""L2O-Scale against a slow NumPy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_open_l2o import (
    SHAPES,
    assert_close,
    random_problem,
    run_of,
    sigmoid,
    slow_linear,
    wide,
)

import l2o


def _slow_gru(theta, x, h, bias=None):
    size = len(h)
    r_bias, u_bias, c_bias = np.split(np.zeros(3 * size) if bias is None else bias, 3)
    gates = slow_linear(theta["gates"], np.concatenate([x, h]))
    r, u = sigmoid(gates[:size] + r_bias), sigmoid(gates[size:] + u_bias)
    c = slow_linear(theta["candidate"], np.concatenate([x, r * h])) + c_bias
    return u * h + (1 - u) * np.tanh(c)


def _slow_l2o_scale(theta, first, grads, global_input):
    """Yields the updates of every step; returns the last rates and problem state."""
    log_lr = {k: np.ravel(x) for k, x in first.log_lr.items()}
    total = sum(x.size for x in log_lr.values())
    slots = {
        k: {
            "h": [theta["initial"]["coordinate"] for _ in x],
            "tensor": theta["initial"]["tensor"],
            "scl": np.zeros(x.size),
            "inp": np.zeros(x.size),
            "accum": np.zeros((4, x.size)),
            "ms": np.zeros((4, x.size)),
        }
        for k, x in log_lr.items()
    }
    problem = theta["initial"]["problem"]
    for grad in grads:
        mean_lr = sum(np.sum(x) for x in log_lr.values()) / total
        updates = {}
        for name, slot in slots.items():
            g = np.ravel(grad[name])
            first_step = not np.any(slot["ms"])
            for i in range(4):
                d = slot["inp"] ** (1 / 2**i)
                s = 0 if first_step else slot["scl"]
                slot["accum"][i] = (1 - d) * g + d * slot["accum"][i]
                square = slot["accum"][i] ** 2 + 1e-12
                slot["ms"][i] = (1 - s) * square + s * slot["ms"][i]
            scaled = np.arcsinh(slot["accum"] / np.sqrt(slot["ms"] + 1e-16))
            logs = np.log(slot["ms"] + 1e-16)
            bias = theta["bias"]
            above = slow_linear(bias["tensor_to_coordinate"], slot["tensor"])
            above = above + slow_linear(bias["problem_to_coordinate"], problem)
            seen, delta = [], []
            for j in range(g.size):
                x = [*scaled[:, j], *(scaled[:-1, j] * scaled[1:, j])]
                x += [*(logs[:, j] - np.mean(logs[:, j])), log_lr[name][j] - mean_lr]
                h = _slow_gru(theta["coordinate"], x, slot["h"][j], above)
                slot["h"][j] = h
                seen.append(np.concatenate([h, x]))
                raw = h @ theta["direction"] + scaled[:, j] @ theta["shortcut"]
                delta.append(raw[0])
                slot["scl"][j] = sigmoid(slow_linear(theta["scale_decay"], h))[0]
                slot["inp"][j] = sigmoid(slow_linear(theta["input_decay"], h))[0]
            above = slow_linear(bias["problem_to_tensor"], problem)
            slot["tensor"] = _slow_gru(
                theta["tensor"], np.mean(seen, 0), slot["tensor"], above
            )
            rate = [slow_linear(theta["log_lr"], h)[0] for h in slot["h"]]
            rate = np.clip(log_lr[name] + np.array(rate), -33, 33)
            keep = sigmoid(theta["log_lr_momentum"])
            log_lr[name] = keep * log_lr[name] + (1 - keep) * rate
            delta /= np.sqrt(np.mean(np.square(delta)) + 1e-16)
            updates[name] = -np.exp(rate + theta["log_lr_offset"]) * delta
        tensors = [slot["tensor"] for slot in slots.values()]
        below = tensors[-1] if global_input == "last_tensor" else np.mean(tensors, 0)
        problem = _slow_gru(theta["problem"], below, problem)
        yield updates, log_lr, problem


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"global_input": "last_tensor"},
        {
            "level_sizes": (3, 5, 4),
            "min_learning_rate": 1e-4,
            "max_learning_rate": 1e-1,
            "seed": 2,
        },
    ],
    ids=["default", "last_tensor", "small"],
)
def test_l2o_scale_equals_its_slow_form(arguments):
    optimizer = l2o.l2o_scale(**arguments)
    theta, params, grads = random_problem(optimizer)
    first, path = run_of(optimizer, theta, params, grads)
    slow = _slow_l2o_scale(
        *wide((theta, first, grads)), optimizer.arguments["global_input"]
    )
    for (updates, state), (expected, log_lr, problem) in zip(path, slow, strict=True):
        for name in SHAPES:
            assert_close(updates[name], expected[name], 3e-5, name)
            assert_close(state.log_lr[name], log_lr[name])
        assert_close(state.problem, problem)


def test_global_level_sees_all_tensors_or_the_last():
    rng = np.random.default_rng(0)
    grads = {k: np.float32(rng.standard_normal(s)) for k, s in SHAPES.items()}
    other = {**grads, "matrix": 2 + grads["matrix"] ** 2}
    for global_input, same in (("mean", False), ("last_tensor", True)):
        optimizer = l2o.l2o_scale(global_input=global_input)
        theta = optimizer.init_theta(jax.random.key(0))
        problems = [
            run_of(optimizer, theta, grads, [g])[1][0][1].problem
            for g in (grads, other)
        ]
        assert np.array_equal(*problems) == same


def test_initial_rates_of_l2o_scale():
    optimizer = l2o.l2o_scale()
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = {f"w{i:02}": jnp.ones(300) for i in range(60)}
    log_lr = np.stack(jax.tree.leaves(tx.init(params).log_lr))
    low, high = np.log(1e-6), np.log(1e-2)
    assert low <= log_lr.min() < low + 0.5 and high - 0.5 < log_lr.max() <= high
    half = (high - low) / 2
    spread = np.ptp(log_lr, axis=1)
    assert 0.95 * half < spread.min() and spread.max() <= half
    # Uniform over half of the range, within a tensor and between tensors.
    deviation = half / np.sqrt(12)
    np.testing.assert_allclose(np.std(log_lr, axis=1), deviation, rtol=0.1)
    np.testing.assert_allclose(np.std(np.mean(log_lr, 1)), deviation, rtol=0.25)


def test_log_rate_is_clipped_in_value_but_not_in_gradient():
    optimizer = l2o.l2o_scale()
    theta = optimizer.init_theta(jax.random.key(0))
    params = jnp.ones(3)

    def update(bias):
        learned = {**theta, "log_lr": {"w": jnp.zeros((10, 1)), "b": bias}}
        return run_of(optimizer, learned, params, [params])[1][0][0]

    bias = jnp.float32([100])
    assert np.sqrt(np.mean(update(bias) ** 2)) == pytest.approx(np.exp(32), rel=1e-5)
    gradient = jax.jacobian(update)(bias)[:, 0]
    np.testing.assert_allclose(gradient, update(bias), rtol=1e-5)
