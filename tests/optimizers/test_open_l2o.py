"""What all optimizers of Open-L2O and MS4L2O have: arguments, sizes, starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import l2o
from l2o._tensors import square_root

OPTIMIZERS = {
    "lstm": l2o.lstm(),
    "rnnprop": l2o.rnnprop(),
    "rnnprop-ms4l2o": l2o.rnnprop(variant="ms4l2o"),
    "l2o_scale": l2o.l2o_scale(),
    "l2o_pa": l2o.l2o_pa(),
}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l2o.lstm(preprocess="log"), "unknown preprocess 'log'; known: log_s"),
        (lambda: l2o.rnnprop(variant="x"), "unknown variant 'x'; known: open_l2o, ms4"),
        (lambda: l2o.l2o_scale(global_input="max"), "'max'; known: mean, last_"),
        (lambda: l2o.l2o_scale(level_sizes=(10, 20)), r"three levels, got \(10, 20\)"),
        (
            lambda: l2o.l2o_scale(min_learning_rate=1.0),
            r"min_learning_rate must be in \(0, max_learning_rate = 0.01\]",
        ),
        (lambda: l2o.l2o_pa(p=("tanh", 1.0)), "normaliser of p 'tanh'; known: exp, ey"),
        (lambda: l2o.l2o_pa(prox="l2"), "unknown prox 'l2'; known: none, l1"),
        (lambda: l2o.l2o_pa(b_norm_for_all=True), "b_norm_for_all needs b"),
    ],
)
def test_wrong_arguments_name_the_right_ones(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        (l2o.lstm(), 5141),
        (l2o.lstm(preprocess="identity"), 5061),
        (l2o.rnnprop(), 6641),
        (l2o.rnnprop(variant="ms4l2o"), 6801),
        (l2o.l2o_scale(), 8349),
        (l2o.l2o_pa(), 5805),
    ],
)
def test_theta_has_the_published_size(optimizer, size):
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == size


@pytest.mark.parametrize(
    ("name", "size"),
    [("lstm", 320), ("rnnprop", 328), ("l2o_scale", 84), ("l2o_pa", 324)],
)
def test_state_has_the_documented_size(name, size):
    optimizer = OPTIMIZERS[name]
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    sizes = [
        sum(4 * x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, jnp.ones(n))))
        for n in (7, 107)
    ]
    assert sizes[1] - sizes[0] == 100 * size


def _deviation(x):
    return np.std(np.asarray(x))


def test_weights_start_as_published():
    cut = 0.8796  # what a normal distribution cut at two deviations keeps of its own
    key = jax.random.key(0)
    theta = jax.jit(l2o.lstm(hidden_size=200).init_theta)(key)
    for layer, inputs in (("lstm_0", 202), ("lstm_1", 400)):
        for part in theta[layer].values():
            expected = cut / np.sqrt(inputs)
            np.testing.assert_allclose(_deviation(part), expected, rtol=0.08)
            assert np.max(np.abs(part)) <= 2 / np.sqrt(inputs)
    np.testing.assert_array_equal(theta["linear"]["b"], 0)
    theta = jax.jit(l2o.rnnprop(hidden_size=200).init_theta)(key)
    expected = cut / np.sqrt(2)
    np.testing.assert_allclose(_deviation(theta["linear_in"]["w"]), expected, rtol=0.08)
    np.testing.assert_array_equal(theta["linear_in"]["b"], 0)
    assert _deviation(theta["lstm_1"]["b"]) > 0

    for optimizer, linear in (
        (l2o.rnnprop(hidden_size=200, variant="ms4l2o"), "linear_out"),
        (l2o.l2o_pa(hidden_size=200), "linear"),
    ):
        theta = jax.jit(optimizer.init_theta)(key)
        for part in [*theta["lstm_0"].values(), *theta[linear].values()]:
            assert np.max(np.abs(part)) <= 200**-0.5
        for part in [*theta["lstm_0"].values(), theta[linear]["w"]]:
            expected = 200**-0.5 / np.sqrt(3)
            np.testing.assert_allclose(_deviation(part), expected, rtol=0.1)

    theta = jax.jit(l2o.l2o_scale(level_sizes=(200, 300, 400)).init_theta)(key)
    levels = {"coordinate": (12, 200), "tensor": (212, 300), "problem": (300, 400)}
    for level, (inputs, size) in levels.items():
        for part, bias in (("gates", 2.2), ("candidate", 0)):
            expected = 0.5 / np.sqrt(inputs + size)
            weights = theta[level][part]
            np.testing.assert_allclose(_deviation(weights["w"]), expected, rtol=0.03)
            np.testing.assert_allclose(weights["b"], bias)
        assert np.max(np.abs(theta["initial"][level])) <= 1
        deviation = _deviation(theta["initial"][level])
        np.testing.assert_allclose(deviation, 1 / np.sqrt(3), rtol=0.1)
    for name, weights in theta["bias"].items():
        assert weights["w"].shape[0] == (300 if name.startswith("tensor") else 400)
        expected = 0.5 / np.sqrt(weights["w"].shape[0])
        np.testing.assert_allclose(_deviation(weights["w"]), expected, rtol=0.03)
    for part in ("direction", "scale_decay", "input_decay"):
        weights = theta[part] if part == "direction" else theta[part]["w"]
        np.testing.assert_allclose(_deviation(weights), 0.5 / 200**0.5, rtol=0.2)
    np.testing.assert_allclose(theta["scale_decay"]["b"], 3.2)
    np.testing.assert_allclose(theta["input_decay"]["b"], 2.2)
    np.testing.assert_array_equal(theta["log_lr"]["w"], 0)
    assert (theta["log_lr_momentum"], theta["log_lr_offset"]) == (np.float32(3.2), -1)
    init_theta = jax.jit(jax.vmap(l2o.l2o_scale(level_sizes=(2, 2, 2)).init_theta))
    many = init_theta(jax.random.split(key, 500))["shortcut"]
    np.testing.assert_allclose(np.mean(many), 0.25, atol=0.005)
    np.testing.assert_allclose(_deviation(many), 0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (lambda **k: l2o.rnnprop(variant="ms4l2o", **k), 0.01),
        (lambda **k: l2o.rnnprop(state_scale=0.5, **k), 0.5),
        (l2o.l2o_pa, 1.0),
    ],
    ids=["ms4l2o", "state_scale", "l2o_pa"],
)
def test_initial_states_are_normal_and_follow_from_the_seed(make, scale):
    def init(params, **arguments):
        optimizer = make(**arguments)
        state = optimizer.bind(optimizer.init_theta(jax.random.key(0))).init(params)
        return [np.asarray(x) for x in jax.tree.leaves(state.lstm)]

    params = {"a": jnp.ones((10, 3)), "b": jnp.ones((10, 3))}
    leaves = init(params)
    for x in leaves:
        assert abs(np.mean(x)) < 0.2 * scale
        np.testing.assert_allclose(np.std(x), scale, rtol=0.1)
    assert len({x.tobytes() for x in leaves}) == len(leaves) == 8
    other = jax.tree.map(lambda p: 3 * p, params)
    assert all(np.array_equal(*x) for x in zip(leaves, init(other)))
    assert not any(np.array_equal(*x) for x in zip(leaves, init(params, seed=1)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_can_be_donated(name):
    optimizer = OPTIMIZERS[name]
    theta = optimizer.init_theta(jax.random.key(0))
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(())}
    donated = params, optimizer.bind(theta).init(params)
    jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(donated)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(theta))


def test_square_root():
    values, slopes = jax.vmap(jax.value_and_grad(square_root))(
        jnp.float32([0, 1e-30, 4])
    )
    np.testing.assert_allclose(values, [0, 1e-15, 2], rtol=1e-6)
    np.testing.assert_allclose(slopes, [0, 5e14, 0.25], rtol=1e-6)


@pytest.mark.parametrize("name", ["rnnprop", "l2o_scale"])
def test_meta_gradient_through_a_scan_is_finite_where_gradients_are_zero(name):
    optimizer = OPTIMIZERS[name]
    params = jnp.float32([1, 0, -1])
    curvature = jnp.float32([1, 1, 0])

    def loss(theta):
        tx = optimizer.bind(theta)

        def body(carry, _):
            x, state = carry
            updates, state = tx.update(curvature * x, state)
            return (x + updates, state), None

        (x, _), _ = lax.scan(body, (params, tx.init(params)), length=2)
        return jnp.sum(curvature * x**2)

    theta = optimizer.init_theta(jax.random.key(0))
    gradient = jax.grad(loss)(theta)
    # Forward mode also sees the root of the first decay, which is zero.
    _, slope = jax.jvp(loss, (theta,), (optax.tree.ones_like(theta),))
    assert np.isfinite(slope) and slope != 0
    assert float(slope) == pytest.approx(float(optax.tree.sum(gradient)), rel=1e-3)
