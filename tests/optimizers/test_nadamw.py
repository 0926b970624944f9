"""`nadamw_baseline` and its schedule against closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, normal
from slow_recurrent import EMPTY, SHAPES

import l2o

NADAMW = {"b1": 0.8, "b2": 0.95, "eps": 1e-2}


def _rate(step):
    return 0.1 / (step + 1)


@pytest.mark.parametrize(
    ("decay", "l2", "nesterov", "bug"),
    [*itertools.product((0.0, 0.3), (0.0, 0.2), (True, False), (True, False))],
)
def test_nadamw_equals_its_closed_form(decay, l2, nesterov, bug):
    tx = l2o.nadamw_baseline(
        _rate,
        **NADAMW,
        adamw_weight_decay=decay,
        l2_weight_decay=l2,
        use_nesterov=nesterov,
        l2_sign_bug=bug,
    )
    params = normal(0, {"w": (3, 2)})
    state, p = tx.init(params), np.float64(params["w"])
    m = v = 0
    for t in range(3):
        grads = normal(t + 1, {"w": (3, 2)})
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        g = np.float64(grads["w"])
        g = g - l2 * p if bug else g + l2 * p
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        lr = _rate(t) * np.sqrt(1 - 0.95 ** (t + 1)) / (1 - 0.8 ** (t + 1))
        direction = (0.8 * m + 0.2 * g if nesterov else m) / (np.sqrt(v) + 1e-2)
        p = p - lr * (direction + decay * p)
        np.testing.assert_allclose(params["w"], p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.mu["w"], m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.nu["w"], v, rtol=1e-5)
    assert state.count == 3


def test_nadamw_is_adam_without_nesterov_and_epsilon():
    ours = l2o.nadamw_baseline(0.1, b1=0.8, b2=0.95, eps=0.0, use_nesterov=False)
    adam = optax.adam(0.1, b1=0.8, b2=0.95, eps=0.0)
    params = normal(0, SHAPES)
    state, adam_state = ours.init(params), adam.init(params)
    for seed in (1, 2):
        grads = normal(seed, SHAPES)
        updates, state = ours.update(grads, state, params)
        expected, adam_state = adam.update(grads, adam_state)
        assert_close(updates, expected)


def test_nadamw_is_an_ordinary_transformation():
    params = {**normal(0, {"w": (3, 2), "s": ()}), "empty": EMPTY, "none": None}
    grads = jax.tree.map(lambda p: 2 * p, params)
    tx = l2o.nadamw_baseline(0.1, adamw_weight_decay=0.1)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params, value=1.0, unexpected=object())
    scaled = optax.inject_hyperparams(l2o.nadamw_baseline)(
        learning_rate=0.1, adamw_weight_decay=0.1
    )
    again, _ = jax.jit(scaled.update)(grads, scaled.init(params), params)
    assert_close(again, updates)
    with pytest.raises(
        ValueError, match="^nadamw_baseline needs the current parameters"
    ):
        tx.update(grads, state)
    narrow = optax.tree.cast((params, grads), jnp.bfloat16)
    low, low_state = tx.update(narrow[1], tx.init(narrow[0]), narrow[0])
    assert {x.dtype.name for x in jax.tree.leaves((low, low_state.mu))} == {"bfloat16"}
    assert_close(optax.tree.cast(low, jnp.float32), updates, rtol=0.02)
    with jax.enable_x64(True):
        g = np.float64(grads["w"])
        high, _ = tx.update(g, tx.init(g), g)
        # m = .1 g, then .9 m + .1 g = .19 g; v = .001 g^2.
        root = np.sqrt(0.001) * np.abs(g) + 1e-8
        expected = -0.1 * np.sqrt(0.001) / 0.1 * (0.19 * g / root + 0.1 * g)
        np.testing.assert_allclose(high, expected, rtol=1e-12)
        assert high.dtype == np.float64 and np.any(np.float32(high) != high)


def _slow_schedule(lr, total, warmup, constant, low, bug, step):
    step = min(step, total)
    end = total * (max(warmup, constant) if bug else min(warmup, constant))
    if warmup > 0 and step < end:
        return lr * step / end
    if step <= total * constant:
        return lr
    part = (step - total * constant) / (total - total * constant)
    return lr * low + lr * (1 - low) * (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize("bug", [True, False])
@pytest.mark.parametrize(
    ("warmup", "constant", "low"),
    [(0.1, 0.5, 0.0), (0.5, 0.25, 0.1), (0, 0.5, 0.2), (0.1, 1.0, 0), (0.2, 0.0, 0.3)],
)
def test_nadamw_schedule(warmup, constant, low, bug):
    schedule = l2o.nadamw_schedule(
        0.1,
        40,
        warmup_fraction=warmup,
        constant_fraction=constant,
        min_learning_rate_mult=low,
        long_warmup_bug=bug,
    )
    for step in (0, 1, 4, 8, 10, 19, 20, 31, 39, 40, 50):
        expected = _slow_schedule(0.1, 40, warmup, constant, low, bug, step)
        np.testing.assert_allclose(
            schedule(jnp.int32(step)), expected, rtol=1e-5, atol=1e-7, err_msg=str(step)
        )


def test_nadamw_schedule_has_the_published_defaults():
    schedule = l2o.nadamw_schedule(1.0, 200)
    for step, expected in (
        (0, 0),
        (2, 0.02),
        (50, 0.5),
        (100, 1),
        (150, 0.5),
        (200, 0),
    ):
        np.testing.assert_allclose(schedule(step), expected, atol=1e-6)
    fixed = l2o.nadamw_schedule(1.0, 200, long_warmup_bug=False)
    for step, expected in ((0, 0), (1, 0.5), (2, 1), (100, 1), (150, 0.5), (200, 0)):
        np.testing.assert_allclose(fixed(step), expected, atol=1e-6)
    with pytest.raises(
        ValueError, match="nadamw_schedule needs num_steps >= 1.* 0 is less"
    ):
        l2o.nadamw_schedule(1.0, 0)
