"""Lyapunov exponents, spectral radii and singular values against closed forms."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2o.meta_train.diagnosis._dynamics import (
    largest_singular_value,
    lyapunov_exponent,
    spectral_radius,
)

KEY = jax.random.key(0)
CURVATURE = jnp.array([0.3, 1.0, 2.5])


def _logistic(r):
    return lambda x: r * x * (1 - x)


@pytest.mark.parametrize(
    "r, expected, atol",
    [(4.0, math.log(2), 0.03), (3.2, -0.9163, 2e-3), (2.5, -math.log(2), 2e-3)],
)
def test_the_logistic_map(r, expected, atol):
    # r = 4: log 2 whatever the start; 3.2: a cycle of two; 2.5: a fixed point, 2 - r.
    starts = jnp.linspace(0.11, 0.89, 8)
    exponents = jax.vmap(
        lambda x: lyapunov_exponent(_logistic(r), x, KEY, steps=600, burn_in=100)
    )(starts)
    np.testing.assert_allclose(np.mean(exponents), expected, atol=atol)


@pytest.mark.parametrize("rate", [0.1, 0.7, 1.2])
def test_sgd_on_a_parabola(rate):
    # J = I - rate H, symmetric: all three numbers are its largest |eigenvalue|.
    def step(x):
        return x - rate * CURVATURE * x

    expected = np.max(np.abs(1 - rate * np.asarray(CURVATURE)))
    for value in (
        jnp.exp(lyapunov_exponent(step, jnp.ones(3), KEY, steps=300, burn_in=200)),
        spectral_radius(step, jnp.ones(3), KEY, iterations=300),
        largest_singular_value(step, jnp.ones(3), KEY),
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-3)


class _State(NamedTuple):
    x: jax.Array
    opt_state: tuple
    step: jax.Array
    key: jax.Array


def _heavy_ball(rate, beta):
    """Heavy ball as optax makes it, in a state with a counter and a key beside."""
    tx = optax.sgd(rate, momentum=beta)

    def step(state):
        updates, opt_state = tx.update(CURVATURE * state.x, state.opt_state)
        return _State(state.x + updates, opt_state, state.step + 1, state.key)

    return step, _State(jnp.ones(3), tx.init(jnp.ones(3)), jnp.int32(0), KEY)


@pytest.mark.parametrize("rate, beta", [(0.2, 0.81), (0.05, 0.5), (2.0, 0.9)])
def test_heavy_ball(rate, beta):
    step, state = _heavy_ball(rate, beta)
    # Eigenvalues solve z^2 - (1 + beta - rate h) z + beta = 0.
    roots = [
        np.abs(np.roots([1, -(1 + beta - rate * h), beta])) for h in CURVATURE.tolist()
    ]
    expected = np.max(roots)
    if rate == 0.2:  # complex pairs only
        np.testing.assert_allclose(roots, math.sqrt(beta))
    radius = spectral_radius(step, state, KEY, iterations=2000)
    np.testing.assert_allclose(radius, expected, rtol=3e-3)
    exponent = lyapunov_exponent(step, state, KEY, steps=2000, burn_in=1000)
    np.testing.assert_allclose(exponent, math.log(expected), atol=3e-3)
    # [x, buffer] of one coordinate: J = [[1 - rate h, -rate beta], [h, beta]].
    norms = [
        np.linalg.norm([[1 - rate * h, -rate * beta], [h, beta]], 2)
        for h in CURVATURE.tolist()
    ]
    value = largest_singular_value(step, state, KEY, iterations=200)
    np.testing.assert_allclose(value, np.max(norms), rtol=1e-4)


def test_noise_that_depends_on_time():
    # s' = a_t s with a_t from a key and a counter: the exponent is the mean of log a_t.
    def factor(t):
        return 0.5 + jax.random.uniform(jax.random.fold_in(KEY, t))

    def step(state):
        return {"x": factor(state["t"]) * state["x"], "t": state["t"] + 1}

    state = {"x": jnp.ones(2), "t": jnp.int32(0)}
    expected = jnp.mean(jnp.log(jax.vmap(factor)(jnp.arange(40))[10:]))
    exponent = lyapunov_exponent(step, state, KEY, steps=40, burn_in=10)
    np.testing.assert_allclose(exponent, expected, rtol=1e-5)


def test_a_step_that_forgets_its_state():
    def step(x):
        return jnp.zeros(2)

    assert float(spectral_radius(step, jnp.ones(2), KEY)) == 0.0
    assert float(lyapunov_exponent(step, jnp.ones(2), KEY, steps=5)) == -math.inf
    assert float(largest_singular_value(step, jnp.ones(2), KEY)) == 0.0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda f: lyapunov_exponent(f, 1.0, KEY, steps=5, burn_in=5), "burn_in"),
        (lambda f: lyapunov_exponent(f, jnp.int32(1), KEY, steps=5), "no float leaf"),
        (lambda f: spectral_radius(f, 1.0, KEY, iterations=1), "iterations >= 2"),
        (lambda f: largest_singular_value(f, 1.0, KEY, iterations=0), ">= 1"),
    ],
)
def test_complaints(call, words):
    with pytest.raises(ValueError, match=words):
        call(lambda x: x)
