"""Families to augment, and what is measured of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from helpers import DARK, ERRORS, KEY

from l2o import tasks

BATCH, DIM = 12, 3
CURVATURE = np.array([1.0, 0.3, 0.1], np.float32)


def _regression_loss(target, data):
    def loss(params, state, key, batch):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"] - target
        aux = {"drawn": jax.random.uniform(key)}
        state = {"step": state["step"] + 1, "mean": jnp.mean(batch["x"])}
        return 0.5 * jnp.mean(error**2), (state, aux)

    del data
    return loss


# Batches of examples, two tensors, a state, aux, a key, a bound and an optimum.
REGRESSION = tasks.TaskFamily(
    sample=lambda key: {"target": jax.random.normal(key)},
    task=lambda config, data: tasks.Task(
        init=lambda key: (
            {"w": jax.random.normal(key, (DIM,)), "b": jnp.ones(())},
            {"step": jnp.zeros((), int), "mean": jnp.zeros(())},
        ),
        batch=lambda key, split: {
            "x": jax.random.normal(key, (BATCH, DIM)),
            "y": jnp.arange(BATCH) % 3,
        },
        loss=_regression_loss(config["target"], data),
        normalize=tasks.clipped(1.0),
    ),
    data=DARK,
    name="regression",
    optimum=lambda config, data: config["target"],
)


# f(x) = 1/2 sum a x^2, whose batches do nothing.
BOWL = tasks.TaskFamily(
    sample=lambda key: (),
    task=lambda config, data: tasks.stateless(
        init=lambda key: jnp.array([1.0, -2.0, 3.0]),
        batch=lambda key, split: jnp.zeros((2, 2)),
        loss=lambda x, key, batch: 0.5 * jnp.sum(CURVATURE * x**2),
    ),
    name="bowl",
)


def value_and_grad_of(family):
    """`(config, key) -> ((loss, (state, aux)), gradient)` at the start."""

    def evaluate(config, key):
        task = family.task(config, family.data)
        params, state = task.init(KEY)
        batch = task.batch(key, "train")
        return jax.value_and_grad(task.loss, has_aux=True)(params, state, key, batch)

    return evaluate


def entry(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def first_of(tree, n):
    return jax.tree.map(lambda x: x[:n], tree)


def assert_mean(draws, expected):
    error = draws.std(0) / math.sqrt(len(draws))
    assert np.all(abs(draws.mean(0) - expected) < ERRORS * error)


def assert_variance(draws, expected):
    squares = (draws - draws.mean(0)) ** 2
    assert_mean(squares, expected)
