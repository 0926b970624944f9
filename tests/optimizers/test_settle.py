"""The wrapper that shortens steps where gradients vanish, against a slow form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import normal

import l2o

KEY = jax.random.key(0)
SHAPES = {"w": (3, 2), "b": (2,), "s": (), "none": (0, 2)}
PARAMS = normal(0, SHAPES)
# So many that their recent mean is not that of all, and once larger again.
SIZES = (*(0.4**t for t in range(16)), 0.0, 30.0, 1e-6)
GRADS = [
    jax.tree.map(lambda g, c=c: np.float32(c * g), normal(seed, SHAPES))
    for seed, c in enumerate(SIZES, 1)
]
INNER = l2o.learnable_sgdm(learning_rate=0.1, momentum=0.5)


def bound(optimizer, num_steps=20):
    return optimizer.bind(optimizer.init_theta(KEY), num_steps=num_steps)


def share_left(grads, power=2.0, margin=1.0, decay=0.9):
    """What is left of the steps after every gradient, in float64."""
    seen = []
    recent = 0.0
    for g in map(np.float64, grads):
        if np.any(g):
            seen.append(np.log(np.mean(np.abs(g))))
            fresh = max(1 - decay, 1 / len(seen))
            recent += fresh * (seen[-1] - recent)
        yield math.exp(power * min(recent - np.mean(seen or 0.0) + margin, 0.0))


@pytest.mark.parametrize(
    "options", [{}, {"power": 0.3, "margin": 0.0, "decay": 0.5}, {"power": 0.0}]
)
def test_equals_its_slow_form(options):
    tx, plain = bound(l2o.settle(INNER, **options)), bound(INNER)
    state, inner = tx.init(PARAMS), plain.init(PARAMS)
    left = {k: share_left([g[k] for g in GRADS], **options) for k in SHAPES}
    for g in GRADS:
        updates, state = tx.update(g, state, PARAMS)
        expected, inner = plain.update(g, inner, PARAMS)
        for k in SHAPES:
            by = next(left[k])
            np.testing.assert_allclose(updates[k], by * expected[k], rtol=1e-5)


def test_losses_and_parameters_of_any_scale_are_alike():
    tx = bound(l2o.settle(INNER))

    def shares(scale):
        state = tx.init(PARAMS)
        found = []
        for g in GRADS:
            _, state = tx.update(optax.tree.scale(scale, g), state, PARAMS)
            found.append(state.sizes.recent - state.sizes.usual)
        return np.stack(found)

    np.testing.assert_allclose(shares(1.0), shares(1e-20), atol=2e-5)


def test_steps_end_where_the_training_data_are_known_by_heart():
    x = jax.random.normal(KEY, (8, 20))
    y = jnp.sign(x[:, 0])

    def loss(w):
        return jnp.mean(jax.nn.softplus(-y * (x @ w)))

    def size(optimizer):
        tx = bound(optimizer, 400)

        @jax.jit
        def step(w, state):
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return optax.apply_updates(w, updates), state

        w = jnp.zeros(20)
        state = tx.init(w)
        for _ in range(400):
            w, state = step(w, state)
        assert loss(w) < 1e-3
        return float(optax.tree.norm(w))

    plain = l2o.learnable_adam(learning_rate=0.1, b2=0.9)
    assert size(l2o.settle(plain)) < 0.7 * size(plain)
    muon = {"weight_decay": 0.0, "learning_rate": 0.1}
    endless = size(l2o.learnable_muon(settle=0.0, **muon))
    assert size(l2o.learnable_muon(**muon)) < 0.7 * endless


def test_without_noise_a_minimum_is_still_reached():
    curvature = jnp.logspace(0, -2, 16)[:, None]
    target = jax.random.normal(KEY, (16, 8))

    def loss(w):
        return jnp.mean(curvature * (w - target) ** 2)

    optimizer = l2o.learnable_muon(weight_decay=0.0)
    tx = bound(optimizer, 300)

    def step(_, carry):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return w + updates, state

    w = jax.random.normal(jax.random.key(1), (16, 8))
    end, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 300, step, c))((w, tx.init(w)))
    assert loss(end) < 1e-6 * loss(w)


def test_what_falls_as_a_power_of_time_loses_a_constant():
    tx = bound(l2o.settle(INNER))
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for t in range(1, 2001):
        _, state = update(optax.tree.scale(t**-0.5, PARAMS), state, PARAMS)
    # The mean of -log(t) / 2 is -(log(T) - 1) / 2.
    left = (state.sizes.recent - state.sizes.usual)[-1]
    np.testing.assert_allclose(left, -0.5, atol=0.01)


def test_power_is_a_meta_parameter():
    optimizer = l2o.settle(INNER)
    theta = optimizer.init_theta(KEY)
    assert set(theta) == {"learned", "power"}

    def last(theta):
        tx = optimizer.bind(theta, num_steps=20)
        state = tx.init(PARAMS)
        for g in GRADS:
            updates, state = tx.update(g, state, PARAMS)
        return updates["b"][0]

    gradient = jax.grad(last)(theta)
    *_, left = share_left([g["b"] for g in GRADS])
    np.testing.assert_allclose(
        gradient["power"], last(theta) * math.log(left), rtol=1e-4
    )


def test_a_weight_decay_inside_is_refused():
    with pytest.raises(ValueError, match=r"decay_weights\(l2o\.settle"):
        l2o.settle(l2o.learnable_muon())
