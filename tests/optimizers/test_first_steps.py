"""First steps: those of Adam or NAdam, on a schedule, relative to the parameters."""

import jax
import numpy as np
import optax
import pytest
from helpers import normal

import l2o


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_init_adam_is_a_normalised_adam(layers):
    shapes = {"w": (5, 3), "b": (4,)}
    optimizer = l2o.celo2_base(learning_rate=1.0, init="adam", hidden_layers=layers)
    params, *grads = (normal(seed, shapes) for seed in range(4))
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    adam = optax.scale_by_adam(0.9, 0.95, eps=0.0, eps_root=1e-8)
    state, expected = tx.init(params), adam.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        steps, expected = adam.update(g, expected)
    for k, step in steps.items():
        step = -step / np.sqrt(np.mean(step**2))
        np.testing.assert_allclose(updates[k], step, rtol=1e-4, atol=1e-5)
    # What else there is can be learned, from any unit.
    theta = optimizer.init_theta(jax.random.key(0))["nn"]
    assert all(np.all(np.any(theta[f"w{i}"] != 0, 0)) for i in range(layers))


def test_init_nadam_adds_the_normalised_gradient():
    shapes = {"w": (5, 3), "b": (4,)}
    optimizer = l2o.celo2_base(learning_rate=1.0, init="nadam")
    params, *grads = (normal(seed, shapes) for seed in range(4))
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    parts = [optax.scale_by_adam(b1, 0.95, eps=0.0, eps_root=1e-8) for b1 in (0.9, 0)]
    state, states = tx.init(params), [part.init(params) for part in parts]
    for g in grads:
        updates, state = tx.update(g, state, params)
        found = [part.update(g, x) for part, x in zip(parts, states, strict=True)]
        steps, states = zip(*found, strict=True)
    for k in shapes:
        step = sum(x[k] / np.sqrt(np.mean(x[k] ** 2)) for x in steps)
        step = -step / np.sqrt(np.mean(step**2))
        np.testing.assert_allclose(updates[k], step, rtol=1e-4, atol=1e-5)


def test_small_fc_begins_as_a_normalised_adam_times_schedule_and_scale():
    shapes = {"w": (5, 3), "b": (4,)}
    optimizer = l2o.small_fc(
        step_mult=0.1, init="adam", schedule="cosine", relative=True
    )
    params, *grads = (normal(seed, shapes) for seed in range(4))
    theta = optimizer.init_theta(jax.random.key(0))
    tx = optimizer.bind(theta, num_steps=40)
    state = tx.init(params)
    m = v = dict.fromkeys(shapes, 0.0)
    # Of a vector the scale is that of the matrices.
    scales = dict.fromkeys(shapes, np.sqrt(np.mean(params["w"] ** 2)))
    fall = 0.5 + 0.5 * np.cos(np.pi * (2 / 40 - 0.05) / 0.95)
    for g, w in zip(grads, (1 / 2, 2 / 2, fall), strict=True):
        updates, state = tx.update(g, state, params)
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in shapes}
        v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in shapes}
        for k, s in scales.items():
            step = m[k] / np.sqrt(v[k] + 1e-6)
            step = -0.1 * w * s * step / np.sqrt(np.mean(step**2))
            np.testing.assert_allclose(updates[k], step, rtol=1e-4, atol=1e-5)
    assert all(np.all(np.any(theta["nn"][f"w{i}"] != 0, 0)) for i in (0, 1))


@pytest.mark.parametrize(
    "optimizer",
    [
        l2o.celo2_base(learning_rate=1.0, relative=True),
        l2o.small_fc(step_mult=1.0, relative=True, init="adam"),
    ],
    ids=["celo2_base", "small_fc"],
)
def test_relative_steps_do_not_grow_with_the_parameters(optimizer):
    shapes = {"w": (5, 3), "b": (4,), "zero": (3, 3, 2)}
    start, grads = normal(0, shapes), normal(1, shapes)
    start["zero"] = 0 * start["zero"]
    start["w"] = 1e-2 * start["w"]
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    state = tx.init(start)

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    def sizes(params):
        updates, _ = tx.update(grads, state, params)
        return jax.tree.map(rms, updates)

    # Below what it was at the start a scale is that of the parameters as they are,
    half = optax.tree.scale(0.5, start)
    typical = 0.5 * rms(start["w"])  # of the matrices that are not zero
    found = sizes(half)
    np.testing.assert_allclose([found["b"], found["w"]], typical, rtol=1e-4)
    np.testing.assert_allclose(found["zero"], 0.1 * typical, rtol=1e-4)
    # up to that of outputs like the inputs
    moved = {**start, "w": 0.2 * grads["w"], "zero": 0.1 * grads["zero"]}
    found = sizes(moved)
    np.testing.assert_allclose(found["w"], rms(moved["w"]), rtol=1e-4)
    np.testing.assert_allclose(found["zero"], rms(moved["zero"]), rtol=1e-4)
    # and no further, unless it was more at the start.
    found = sizes(optax.tree.scale(1e5, moved))
    np.testing.assert_allclose(found["w"], 1 / np.sqrt(5), rtol=1e-4)
    np.testing.assert_allclose(found["zero"], 1 / np.sqrt(9), rtol=1e-4)
    usual = np.sqrt((15 / 5 + 18 / 9) / 33)
    np.testing.assert_allclose(found["b"], max(rms(start["w"]), usual), rtol=1e-4)
    state = tx.init(optax.tree.scale(1e4, moved))
    np.testing.assert_allclose(
        sizes(optax.tree.scale(1e5, moved))["w"], 1e4 * rms(moved["w"]), rtol=1e-4
    )


def test_without_matrices_relative_steps_grow_to_one():
    optimizer = l2o.celo2_base(learning_rate=1.0, relative=True)
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = {"w": np.zeros(5, np.float32)}
    grads = {"w": np.arange(1, 6, dtype=np.float32)}
    state = tx.init(params)
    for size, expected in ((0.0, 1e-3), (0.3, 0.3), (30.0, 1.0)):
        updates, _ = tx.update(grads, state, {"w": params["w"] + np.float32(size)})
        found = np.sqrt(np.mean(np.square(updates["w"])))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_small_fc_takes_the_schedules_that_it_knows():
    with pytest.raises(ValueError, match="unknown schedule 'linear'; known: constant"):
        l2o.small_fc(schedule="linear")
    with pytest.raises(ValueError, match='init "nadam" needs .*"g_norm"'):
        l2o.small_fc(init="nadam")


@pytest.mark.parametrize("init", ["adam", "nadam"])
@pytest.mark.parametrize("make", [l2o.celo2_base, l2o.normalized_velo])
def test_init_names_the_features_it_needs(make, init):
    with pytest.raises(ValueError, match=f'init "{init}" needs .*"m_norm"'):
        make(init=init, features=("g", "m"))
    with pytest.raises(ValueError, match="hidden_size >= 2"):
        make(init=init, hidden_size=1)
    with pytest.raises(ValueError, match="unknown init 'sgd'"):
        make(init="sgd")
