"""Slow LSTMs of Open-L2O and MS4L2O, and runs that are held against them."""

import jax
import numpy as np

SHAPES = {"matrix": (5, 3), "scalar": (), "vector": (4,)}  # in the order of the tree


def random_problem(optimizer, steps=4):
    """Random theta, nothing zero; parameters; gradients from 1 down to 1e-4."""
    rng = np.random.default_rng(0)
    theta = jax.tree.map(
        lambda x: np.float32(x + 0.2 * rng.standard_normal(x.shape)),
        optimizer.init_theta(jax.random.key(0)),
    )
    sizes = dict(zip(SHAPES, (1, 1e-2, 1e-4)))
    params = {k: np.float32(rng.standard_normal(s)) for k, s in SHAPES.items()}
    grads = [
        {k: np.float32(sizes[k] * rng.standard_normal(s)) for k, s in SHAPES.items()}
        for _ in range(steps)
    ]
    return theta, params, grads


def run_of(optimizer, theta, params, grads):
    """The first state, and the updates and state of every step."""

    @jax.jit
    def step(theta, grads, state):
        return optimizer.bind(theta).update(grads, state)

    first = state = jax.jit(lambda theta: optimizer.bind(theta).init(params))(theta)
    path = []
    for g in grads:
        updates, state = step(theta, g, state)
        path.append((updates, state))
    return first, path


def assert_close(actual, expected, tolerance=1e-5, message=""):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.reshape(actual, expected.shape),
        expected,
        rtol=0,
        atol=tolerance * np.max(np.abs(expected)),
        err_msg=message,
    )


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_linear(weights, x):
    return x @ weights["w"] + weights["b"]


def slow_stack(theta, layers, x, hidden, cell, forget_bias):
    """One coordinate, one step; changes the lists of states in place."""
    for layer in range(layers):
        weights = theta[f"lstm_{layer}"]
        gates = slow_linear(weights, np.concatenate([x, hidden[layer]]))
        i, g, f, o = np.split(gates + weights.get("b_hidden", 0), 4)
        cell[layer] = sigmoid(f + forget_bias) * cell[layer]
        cell[layer] += sigmoid(i) * np.tanh(g)
        x = hidden[layer] = sigmoid(o) * np.tanh(cell[layer])
    return x


def states_of_coordinate(stack, name, index):
    """Hidden and cell states of one coordinate, a list per layer."""
    return (
        [
            np.float64(np.reshape(tree[name], (-1, tree[name].shape[-1]))[index])
            for tree in part
        ]
        for part in (stack.hidden, stack.cell)
    )
