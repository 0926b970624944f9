"""Variance of linear losses against its laws; signs and clipping of differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_estimator import estimator_of
from helpers import few

from l2o import meta_train as mt
from l2o.meta_train import constant
from l2o.tasks import stateless


def _linear(dim):
    """Every step's loss is v . theta of that step, whatever the state: |v|^2 = dim."""

    def task(theta, config, data):
        return stateless(
            init=lambda key: jnp.float32(0),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: jnp.sum(theta),
        )

    return mt.learn_hyperparameters(
        lambda key: jnp.zeros(dim), task, tx=optax.set_to_zero()
    )


@pytest.mark.parametrize(
    "name, law",
    [
        ("pes", lambda window, d: window * d + 1),
        ("nres", lambda window, d: d + 1),
        ("forward_gradient", lambda window, d: d + 1),
    ],
)
def test_variance_laws_of_linear_losses(name, law):
    # Trace of the covariance of one pair, in units of |v|^2, window by window.
    dim, windows, n = 3, 4, 20_000
    problem = _linear(dim)
    estimator = estimator_of(
        name, problem, constant(windows), truncation=1, particles=1
    )
    theta = jnp.zeros(dim)

    @jax.jit
    @jax.vmap
    def episode(key):
        k_init, *keys = jax.random.split(key, 1 + windows)
        state = estimator.init(k_init, theta)
        gradients = []
        for k in keys:
            gradient, state, _ = estimator.estimate(k, theta, state, ())
            gradients.append(gradient)
        return jnp.stack(gradients)

    gradients = np.asarray(episode(jax.random.split(jax.random.key(0), n)))
    squares = np.sum((gradients - 1.0) ** 2, -1)  # (n, windows); the mean is v = 1
    for window in range(windows):
        expected = law(window + 1, dim) * dim
        error = squares[:, window].std(ddof=1) / math.sqrt(n)
        assert abs(squares[:, window].mean() - expected) < 4 * error
        mean_error = gradients[:, window].std(0, ddof=1) / math.sqrt(n)
        assert np.all(abs(gradients[:, window].mean(0) - 1) < 4 * mean_error)


@pytest.mark.parametrize(
    "name",  # which share the code of differences
    few(["full_es", "pes", "nres", "truncated_es"], ["full_es", "pes"]),
)
def test_sign_and_clip(name):
    dim, std, sign = 3, 0.1, 0.7
    problem = _linear(dim)
    given = {"truncation": 1, "particles": 50_000, "std": std}
    theta = jnp.zeros(dim)
    estimator = estimator_of(name, problem, constant(1), sign=sign, **given)
    state = estimator.init(jax.random.key(0), theta)
    gradient, _, _ = estimator.estimate(jax.random.key(1), theta, state, ())
    # E g = a sqrt(2/pi) / (2 sigma) v / |v|.
    expected = sign * math.sqrt(2 / math.pi) / (2 * std) / math.sqrt(dim)
    np.testing.assert_allclose(gradient, expected, rtol=0.03)
    # A bound that all differences exceed is a sign times the bound.
    clipped = estimator_of(name, problem, constant(1), clip=1e-6, **given)
    bounded, _, _ = clipped.estimate(jax.random.key(1), theta, state, ())
    np.testing.assert_allclose(bounded, gradient * 1e-6 / sign, rtol=1e-3)
    # One that none exceeds changes nothing.
    loose = estimator_of(name, problem, constant(1), clip=1e6, **given)
    plain = estimator_of(name, problem, constant(1), **given)
    np.testing.assert_allclose(
        loose.estimate(jax.random.key(1), theta, state, ())[0],
        plain.estimate(jax.random.key(1), theta, state, ())[0],
    )
