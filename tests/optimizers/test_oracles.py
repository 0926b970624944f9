"""Update rules, accumulators and features against slow or closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import momenta, normal

import l2o
from l2o.rule._accumulators import (
    Decays,
    factored_axes,
    init_accumulators,
    inverse_roots,
    update_accumulators,
)
from l2o.rule._features import time_embedding

ONE_DECAY = {
    "momentum_decays": (0.9,),
    "rms_decays": (0.99,),
    "adafactor_decays": (0.95,),
}


# One matrix where a test compiles: XLA's time is what these tests cost. `test_tree` has
# the other shapes, and the replayed traces of `test_parity` compile them together.
SHAPES = {"w": (3, 2)}


PARAMS = normal(0, SHAPES)


def _numpy_sgdm(learning_rate, momentum):
    def step(g, state):
        b = momentum * (0 if state is None else state) + g
        return -learning_rate * b, b

    return step


def _numpy_adam(learning_rate, b1, b2, eps, eps_root):
    def step(g, state):
        t, m, v = (0, 0, 0) if state is None else state
        t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        return -learning_rate * m_hat / (np.sqrt(v_hat + eps_root) + eps), (t, m, v)

    return step


SGD = {"learning_rate": 0.03}


SGDM = {"learning_rate": 0.03, "momentum": 0.8}


ADAM = {"learning_rate": 0.03, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "eps_root": 0.0}


ADAM_ROOT = {**ADAM, "eps_root": 1e-2}


@pytest.mark.parametrize(
    ("learned", "plain", "slow"),
    [
        (l2o.learnable_sgd(**SGD), optax.sgd(**SGD), _numpy_sgdm(0.03, 0)),
        (l2o.learnable_sgdm(**SGDM), optax.sgd(**SGDM), _numpy_sgdm(**SGDM)),
        (l2o.learnable_adam(**ADAM), optax.adam(**ADAM), _numpy_adam(**ADAM)),
        (
            l2o.learnable_adam(**ADAM_ROOT),
            optax.adam(**ADAM_ROOT),
            _numpy_adam(**ADAM_ROOT),
        ),
    ],
    ids=["sgd", "sgdm", "adam", "adam-eps_root"],
)
def test_learnable_optimizer_equals_optax_and_the_closed_form(learned, plain, slow):
    tx = learned.bind(learned.init_theta(jax.random.key(0)))
    params = PARAMS["w"]
    state, plain_state, slow_state = tx.init(params), plain.init(params), None
    for seed in range(5):
        grads = 0.1 * normal(seed, SHAPES)["w"]
        updates, state = tx.update(grads, state, params)
        plain_updates, plain_state = plain.update(grads, plain_state, params)
        slow_updates, slow_state = slow(np.float64(grads), slow_state)
        np.testing.assert_allclose(updates, plain_updates, rtol=1e-5)
        np.testing.assert_allclose(updates, slow_updates, rtol=1e-5)


def test_gradient_of_learnable_sgd_matches_finite_differences():
    curvature, start, steps = np.array([1.0, 3.0]), np.array([2.0, -1.0]), 3
    optimizer = l2o.learnable_sgd()

    def loss(theta):
        tx = optimizer.bind(theta)
        x = jnp.asarray(start)
        state = tx.init(x)
        for _ in range(steps):
            updates, state = tx.update(curvature * x, state, x)
            x = optax.apply_updates(x, updates)
        return jnp.sum(curvature * x * x) / 2

    with jax.enable_x64(True):
        log_lr = math.log(0.1)
        gradient = jax.grad(loss)({"log_lr": jnp.float64(log_lr)})["log_lr"]
        h = 1e-5
        high, low = (
            np.float64(loss({"log_lr": jnp.float64(log_lr + d)})) for d in (h, -h)
        )
    np.testing.assert_allclose(gradient, (high - low) / (2 * h), rtol=1e-7)
    # L = sum(c x_k^2) / 2 with x_k = (1 - a c)^k x_0 and a = exp(log_lr).
    factor = 1 - 0.1 * curvature
    exact = -np.sum(
        curvature * start**2 * steps * factor ** (2 * steps - 1) * 0.1 * curvature
    )
    np.testing.assert_allclose(gradient, exact, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((7,), None),
        ((3, 5), (0, 1)),
        ((5, 3), (1, 0)),
        ((1, 4), (0, 1)),
        ((4, 4), (0, 1)),
        ((2, 5, 3), (2, 1)),
        ((3, 3, 16, 32), (2, 3)),
        ((64, 64, 3, 3), (0, 1)),
        ((3, 3, 64, 64), (2, 3)),
    ],
)
def test_factored_axes(shape, axes):
    assert factored_axes(shape) == axes


def test_time_embedding_closed_form():
    start = time_embedding(jnp.int32(0))
    assert start.shape == (11,)
    np.testing.assert_allclose(start, np.tanh(-1), rtol=1e-6)
    np.testing.assert_allclose(time_embedding(jnp.int32(30))[3], 0, atol=1e-6)
    np.testing.assert_allclose(time_embedding(jnp.int32(100_000))[10], 0, atol=1e-6)
    np.testing.assert_allclose(time_embedding(jnp.int32(20))[2], np.tanh(1), rtol=1e-6)


def test_first_factored_update_of_a_constant_gradient():
    grad, decays = jnp.full((5, 3), -2.0), Decays(second=(0.9,))
    axes = factored_axes(grad.shape)
    zeros = init_accumulators(grad, decays)
    moment = update_accumulators(zeros, grad, decays, axes)
    (row,), (col,) = moment.row, moment.col
    assert (row.shape, col.shape) == ((1, 3), (5, 1))
    np.testing.assert_allclose(row, 0.1 * 4, rtol=1e-6)
    np.testing.assert_allclose(col, 0.1 * 4, rtol=1e-6)
    scaled = math.prod(inverse_roots(moment, axes)[0], start=grad)
    np.testing.assert_allclose(scaled, -1 / math.sqrt(0.1), rtol=1e-5)


def _rsqrt(x):
    return 1 / np.sqrt(x)


def _floored_rsqrt(x):
    return _rsqrt(np.maximum(x, 1e-9))


def _slow_step(nn, features, moved, t, arguments):
    """The network on features stacked along a trailing axis, one update of a tensor.

    `moved` are the entries that have had a gradient: only they make a step.
    """
    every = tuple(range(features.ndim - 1))
    x = features * _rsqrt(np.mean(features**2, every, keepdims=True) + 1e-5)
    scales = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
    time = np.broadcast_to(np.tanh(t / scales - 1), (*x.shape[:-1], 11))
    x = np.concatenate([x, time], -1)
    layers = len(nn) // 2
    for i in range(layers):
        x = x @ nn[f"w{i}"] + nn[f"b{i}"]
        if i < layers - 1:
            x = np.maximum(x, 0)
    direction, magnitude = x[..., :1], x[..., 1:]
    step = direction * np.exp(magnitude * arguments["exp_mult"])
    return np.where(moved[..., None], step * arguments["step_mult"], 0)


def _slow_mlp(theta, arguments, param, grads):
    """`mlp` on one tensor, in float64: its path and its last momenta."""
    decay = np.array(arguments["momentum_decays"])
    p = param.reshape(param.shape or (1,))[..., None]
    m, path, moved = 0, [], False
    for t, grad in enumerate(grads):
        g = grad.reshape(p.shape)
        moved = moved | (g[..., 0] != 0)
        m = decay * m + (1 - decay) * g
        p = p - _slow_step(
            theta["nn"], np.concatenate([g, p, m], -1), moved, t, arguments
        )
        path.append(p.reshape(param.shape))
    return path, {"momentum": m}


def _slow_small_fc(theta, arguments, param, grads):
    """`small_fc` on one tensor, in float64: its path and its last accumulators."""

    def decays(kind):
        offset = np.exp(10 * theta[kind])
        return 1 - (1 - np.array(arguments[kind])) * offset

    d_m = decays("momentum_decays")
    d_r = np.clip(decays("rms_decays"), 0, 1)
    d_v = np.clip(decays("adafactor_decays"), 0, 1)
    p = param.reshape(param.shape or (1,))[..., None]
    shape = p.shape[:-1]
    m = r = v = v_row = v_col = 0
    path, moved = [], False
    for t, grad in enumerate(grads):
        g = grad.reshape(p.shape)
        moved = moved | (g[..., 0] != 0)
        m = d_m * m + (1 - d_m) * g
        r = d_r * r + (1 - d_r) * g**2
        if len(shape) < 2:
            row = col = v = d_v * v + (1 - d_v) * (g**2 + 1e-30)
            g_scale, m_scale = _floored_rsqrt(v + 1e-9), _rsqrt(v + 1e-6)
        else:
            # Python's sort is stable: of equal axes the later one counts as larger.
            *_, d1, d0 = sorted(range(len(shape)), key=lambda axis: shape[axis])
            v_row = d_v * v_row + (1 - d_v) * np.mean(g**2 + 1e-30, d0)
            v_col = d_v * v_col + (1 - d_v) * np.mean(g**2 + 1e-30, d1)
            mean = np.mean(v_row, d1 - 1 if d1 > d0 else d1, keepdims=True)
            row_scale = np.expand_dims(_floored_rsqrt(v_row / (mean + 1e-9)), d0)
            col_scale = np.expand_dims(_floored_rsqrt(v_col), d1)
            g_scale = m_scale = row_scale * col_scale
            row = np.broadcast_to(np.expand_dims(v_row, d0), g_scale.shape)
            col = np.broadcast_to(np.expand_dims(v_col, d1), g_scale.shape)
        features = [g, p, m, r, m * _rsqrt(r + 1e-6), _rsqrt(r + 1e-6), g * g_scale]
        features += [row, col, _rsqrt(row + 1e-8), _rsqrt(col + 1e-8), m * m_scale]
        features = np.concatenate(features, -1)
        p = p - _slow_step(theta["nn"], features, moved, t, arguments)
        path.append(p.reshape(param.shape))
    slots = {"momentum": m, "rms": r, "row": row}
    return path, slots if len(shape) < 2 else {**slots, "col": col}


ORACLE_SHAPES = {
    "matrix": (5, 3),
    "vector": (4,),
    "scalar": (),
    "conv": (3, 3, 4, 6),
    "square": (3, 3),
    "size_one": (1, 4),
    "sparse": (4, 3),
}


PAIRED_DECAYS = {
    "momentum_decays": (0.5, 0.9),
    "rms_decays": (0.95, 0.99),
    "adafactor_decays": (0.9, 0.99),
}


def _oracle_problem(optimizer, steps=3):
    """Random theta, nothing zero, and gradients of 1 to 1e-4: every epsilon acts."""
    rng = np.random.default_rng(0)

    def noisy(path, x):
        decays = "decays" in jax.tree_util.keystr(path)
        return x + (0.03 if decays else 0.2) * rng.standard_normal(x.shape)

    theta = jax.tree_util.tree_map_with_path(
        noisy, optimizer.init_theta(jax.random.key(0))
    )
    theta = jax.tree.map(np.float32, theta)
    params = {k: rng.standard_normal(s) for k, s in ORACLE_SHAPES.items()}
    sizes = dict(zip(ORACLE_SHAPES, [1, 1e-2, 1e-3, 1e-1, 1e-4, 1e-2, 1e-1]))
    grads = {
        k: sizes[k] * rng.standard_normal((steps, *s)) for k, s in ORACLE_SHAPES.items()
    }
    grads["sparse"][:, :2] = 0
    return jax.tree.map(np.float32, (theta, params, grads))


def _assert_follows(optimizer, slow, theta, params, grads):
    """Runs the transformation on all tensors; compares each with the slow rule."""
    tx = optimizer.bind(theta)
    steps = len(grads["scalar"])
    fast, state, path = params, tx.init(params), []
    update = jax.jit(tx.update)
    for t in range(steps):
        updates, state = update({k: g[t] for k, g in grads.items()}, state, fast)
        fast = optax.apply_updates(fast, updates)
        path.append(fast)
    assert state.count == steps
    wide = jax.tree.map(np.float64, (theta, params, grads))
    for name, param in wide[1].items():
        expected, slots = slow(wide[0], optimizer.arguments, param, wide[2][name])
        for t in range(steps):
            np.testing.assert_allclose(
                path[t][name], expected[t], rtol=0, atol=1e-5, err_msg=f"{name} {t}"
            )
        found = {"momentum": [m[name] for m in momenta(state)]}
        if "rms" in slots:
            found["rms"] = [r[name] for r in state.accumulators.rms]
            found["row"] = [v[name] for v in state.accumulators.row]
            found["col"] = [v[name] for v in state.accumulators.col]
        for slot, expected_slot in slots.items():
            stacked = np.stack(
                [np.broadcast_to(x, param.shape) for x in found[slot]], -1
            )
            np.testing.assert_allclose(
                stacked.reshape(expected_slot.shape),
                expected_slot,
                rtol=2e-4,
                atol=1e-12,
                err_msg=f"{name} {slot}",
            )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden_size": 8, "hidden_layers": 3, **ONE_DECAY},
        # Two decays each, of which the next has one and two.
        pytest.param(
            {"hidden_size": 32, "hidden_layers": 1, **PAIRED_DECAYS},
            marks=pytest.mark.exhaustive,
        ),
        {"hidden_layers": 1, **PAIRED_DECAYS, "momentum_decays": (0.9,)},
        pytest.param(
            {"hidden_size": 32, "hidden_layers": 3}, marks=pytest.mark.exhaustive
        ),
    ],
    ids=["default", "8x3-one_decay", "32x1-paired", "4x1-one_with_two", "32x3"],
)
def test_small_fc_equals_its_slow_form(arguments):
    optimizer = l2o.small_fc(**arguments, step_mult=0.1, exp_mult=0.1)
    _assert_follows(optimizer, _slow_small_fc, *_oracle_problem(optimizer))


def test_small_fc_clips_all_learned_decays_but_those_of_momenta():
    optimizer = l2o.small_fc(hidden_size=4, hidden_layers=1, **ONE_DECAY, step_mult=0.1)
    theta, params, grads = _oracle_problem(optimizer)
    for kind in ONE_DECAY:
        theta[kind] = np.float32([0.6])  # 1 - d is 400 times larger
    _assert_follows(optimizer, _slow_small_fc, theta, params, grads)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden_size": 8, "hidden_layers": 1},
        {"hidden_size": 8, "hidden_layers": 3, "momentum_decays": (0.9,)},
    ],
    ids=["default", "8x1", "8x3-one_decay"],
)
def test_mlp_equals_its_slow_form(arguments):
    optimizer = l2o.mlp(**arguments, step_mult=0.1, exp_mult=0.1)
    _assert_follows(optimizer, _slow_mlp, *_oracle_problem(optimizer))


@pytest.mark.parametrize("kind", ["rms_decays", "adafactor_decays"])
def test_decays_that_cannot_be_paired_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"groups of 3 and 2 .* cannot be paired: give"
    ):
        l2o.small_fc(**{kind: (0.9, 0.99)})
