"""The wrapper that adapts step sizes, against a slow form and what it promises."""

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
GRADS = [normal(seed, SHAPES) for seed in range(1, 6)]
T = 20
INNER = l2o.learnable_sgdm(learning_rate=0.1, momentum=0.5)


def bound(optimizer, num_steps=T):
    return optimizer.bind(optimizer.init_theta(KEY), num_steps=num_steps)


def slow(grads, gain=20.0, drift=1.0, fade=0.0, decay=0.9, factor_bounds=(0.1, 10.0)):
    """Factors after every gradient, for SGD with momentum 0.5, in float64."""
    m = last = np.zeros_like(grads[0], np.float64)
    c = r = 0.0
    for t, g in enumerate(map(np.float64, grads)):
        norms = np.linalg.norm(g) * np.linalg.norm(last)
        cosine = np.sum(g * last) / norms if norms else 0.0
        c = decay * c - (1 - decay) * cosine
        if np.any(g):  # what never has a gradient does not drift
            r += (1 - t / T) ** fade * (gain * c + drift) / T
        r = np.clip(r, *np.log(factor_bounds))
        m = 0.5 * m + g
        update = -0.1 * math.exp(r) * m
        # What is kept of it has eleven bits.
        largest = np.max(np.abs(update), initial=0.0)
        last = np.float64(np.float16(update / (largest or 1.0)))
        yield update, r


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gain": 100.0, "drift": -10.0, "decay": 0.5, "factor_bounds": (0.5, 1.2)},
        {"fade": 2.5},
    ],
    ids=["default", "other", "fading"],
)
def test_equals_its_slow_form(options):
    tx = bound(l2o.hypergradient(INNER, **options))
    state = tx.init(PARAMS)
    expected = {k: slow([g[k] for g in GRADS], **options) for k in SHAPES}
    for g in GRADS:
        updates, state = tx.update(g, state, PARAMS)
        rows = iter(state.factors.log_factors)
        for k in sorted(SHAPES):
            update, r = next(expected[k])
            np.testing.assert_allclose(updates[k], update, rtol=1e-4, err_msg=k)
            if updates[k].size:
                factor = next(rows)
                np.testing.assert_allclose(factor, r, rtol=1e-3, atol=1e-6, err_msg=k)


def test_factors_depend_on_directions_alone():
    def factors(scale):
        tx = bound(l2o.hypergradient(INNER))
        state = tx.init(PARAMS)
        for g in GRADS:
            _, state = tx.update(optax.tree.scale(scale, g), state, PARAMS)
        return state.factors.log_factors

    assert np.ptp(factors(1.0)) > 0.01
    for scale in (2.0**-80, 2.0**40):  # squares of the first are no float32
        np.testing.assert_allclose(factors(scale), factors(1.0), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.01, 0.1, 3.9])
def test_a_wrong_rate_mends_itself(rate):
    """Of gradient descent on a parabola whose best rate is one."""
    steps = 200

    def end(optimizer):
        tx = bound(optimizer, steps)

        def step(carry, _):
            p, state = carry
            updates, state = tx.update(p, state, p)
            return (optax.apply_updates(p, updates), state), None

        start = jnp.array([1.0, -2.0])
        (p, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
        return float(jnp.linalg.norm(p))

    plain = l2o.learnable_sgd(learning_rate=rate)
    adapted = end(l2o.hypergradient(plain, gain=200.0))
    assert not adapted > 1e-6
    assert not end(plain) < 1e3 * adapted


def test_what_is_zero_or_not_finite_tells_nothing():
    tx = bound(l2o.hypergradient(INNER, drift=0.0))
    state = tx.init(PARAMS)
    for g in (GRADS[0], optax.tree.zeros_like(PARAMS)):
        _, state = tx.update(g, state, PARAMS)
        assert not np.any(state.factors.log_factors)
    _, state = tx.update(optax.tree.full_like(PARAMS, jnp.nan), state, PARAMS)
    assert not np.any(state.factors.log_factors)


def test_what_fades_has_derivatives_and_no_effect_after_the_end():
    optimizer = l2o.hypergradient(INNER, fade=1.5)

    def end(theta):
        tx = optimizer.bind(theta, num_steps=2)
        state = tx.init(PARAMS)
        for g in GRADS:
            updates, state = tx.update(g, state, PARAMS)
        return jnp.sum(updates["w"]), state.factors.log_factors

    theta = optimizer.init_theta(KEY)
    gradient, factors = jax.grad(end, has_aux=True)(theta)
    assert all(np.isfinite(x) for x in jax.tree.leaves(gradient))
    assert abs(gradient["fade"]) > 1e-3
    tx = optimizer.bind(theta, num_steps=2)
    state = tx.init(PARAMS)
    for g in GRADS[:2]:
        _, state = tx.update(g, state, PARAMS)
    np.testing.assert_allclose(factors, state.factors.log_factors, rtol=1e-6)


def test_a_factor_stays_one_without_a_gradient_and_follows_after_one():
    tx = bound(l2o.hypergradient(INNER))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    zeros = optax.tree.zeros_like(params)
    for grads in (zeros, {**zeros, "b": jnp.ones(2)}, zeros):
        _, state = tx.update(grads, state, params)
    a, b = state.factors.log_factors
    assert a == 0 and b > 0


def test_state_is_two_bytes_per_parameter_more():
    p = jnp.zeros((64, 64), jnp.float32)

    def size(tx):
        state = jax.eval_shape(tx.init, p)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    more = size(bound(l2o.hypergradient(INNER))) - size(bound(INNER))
    assert more == 2 * p.size + 16


def test_gain_and_drift_are_meta_parameters():
    optimizer = l2o.hypergradient(INNER, decay=0.5)
    theta = optimizer.init_theta(KEY)
    assert set(theta) == {"learned", "log_gain", "drift", "fade"}
    g = [np.array([1.0, 2.0]), np.array([0.5, -0.25]), np.array([1.0, 1.0])]

    def last(theta):
        tx = optimizer.bind(theta, num_steps=T)
        p = jnp.zeros(2)
        state = tx.init(p)
        for x in g:
            updates, state = tx.update(jnp.asarray(x, jnp.float32), state, p)
        return jnp.sum(updates)

    gradient = jax.grad(last)(theta)
    *_, (update, r) = slow(g, decay=0.5)
    # u = -0.1 exp(r) m, and r is the gain times what was added up, and the drift.
    by_gain, by_drift = r - 3 / T, 3 / T
    total = np.sum(update)
    np.testing.assert_allclose(gradient["log_gain"], total * by_gain, rtol=2e-3)
    np.testing.assert_allclose(gradient["drift"], total * by_drift, rtol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gain": 0.0}, "gain to be a finite number > 0"),
        ({"factor_bounds": (0.0, 2.0)}, "around one"),
        ({"factor_bounds": (2.0, 3.0)}, "around one"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        l2o.hypergradient(INNER, **options)


@pytest.mark.parametrize(
    "learned",
    [
        l2o.celo2_base(weight_decay=0.1),
        l2o.clip_gradients(l2o.elo(weight_decay=0.1)),
        l2o.decay_weights(INNER, 1e-3),
        l2o.nominal(INNER, decay_per_step=1e-3),
    ],
    ids=["own", "wrapped", "wrapper", "shrinkage"],
)
def test_weight_decay_is_not_to_be_multiplied(learned):
    with pytest.raises(ValueError, match=r"would multiply the weight decay of"):
        l2o.hypergradient(learned)


def test_length_of_the_run_is_needed():
    optimizer = l2o.hypergradient(INNER)
    assert optimizer.needs == ("num_steps",)
    with pytest.raises(ValueError, match="num_steps"):
        bound(optimizer, None)


def test_arguments_of_what_is_wrapped_can_be_changed_on_loading(tmp_path):
    rule = l2o.celo2_base(learning_rate=0.25)
    optimizer = l2o.clip_gradients(l2o.hypergradient(rule, gain=10.0), 2.0)
    theta = optimizer.init_theta(KEY)
    l2o.save(tmp_path, optimizer, theta)
    loaded, _ = l2o.load_unbound(tmp_path, learning_rate=0.5, gain=20.0, bound=3.0)
    expected = l2o.clip_gradients(
        l2o.hypergradient(l2o.celo2_base(learning_rate=0.5), gain=20.0), 3.0
    )
    assert loaded.arguments == expected.arguments
    assert optimizer.arguments["optimizer"]["arguments"]["gain"] == 10.0
    known = "known: .*also takes gain, .*learning_rate"
    message = f"clip_gradients has no argument 'decay_per_step'; {known}"
    with pytest.raises(ValueError, match=message):
        l2o.load(tmp_path, decay_per_step=0.5, num_steps=T)
