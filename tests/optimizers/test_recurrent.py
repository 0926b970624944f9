"""`rnn_mlp` and `nn_adam` against slow or closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, few, normal
from slow_recurrent import EMPTY, SHAPES, SlowRNNMLP, slow_nn_adam

import l2o

# Every width its own, so that no two can be exchanged unnoticed.
RNN_MLP = {
    "step_mult": 0.1,
    "exp_mult": 0.5,
    "hidden_size": 6,
    "hidden_layers": 1,
    "from_mlp_size": 3,
    "from_lstm_size": 4,
    "lstm_to_ff": 2,
    "lstm_hidden_size": 5,
    "momentum_decays": (0.5, 0.99),
}


NN_ADAM = {
    "lstm_hidden_size": 5,
    "learning_rate": 100.0,
    "b1": 0.99,
    "b2": 0.9,  # of a smaller 1 - b2 float32 keeps few digits
    "eps": 1e-9,
    "step_mult": 0.3,
    "decay_strength": 0.2,
}


def _noisy_theta(optimizer):
    rng = np.random.default_rng(5)

    def noisy(x):
        return np.float32(x + 0.2 * rng.standard_normal(x.shape))

    return jax.tree.map(noisy, optimizer.init_theta(jax.random.key(0)))


def _problem(steps=4):
    params = normal(0, SHAPES)
    params["vector"] = jnp.zeros(4)  # as biases start
    params["matrix"] = params["matrix"].at[1, 2].set(0)
    sizes = dict(zip(SHAPES, (1, 0.1, 1e-2, 30, 1e-3), strict=True))
    grads = [
        {k: sizes[k] * g for k, g in normal(seed, SHAPES).items()}
        for seed in range(1, steps + 1)
    ]
    return params, grads


def test_rnn_mlp_equals_its_slow_form():
    optimizer = l2o.rnn_mlp(**RNN_MLP)
    theta = _noisy_theta(optimizer)
    tx = optimizer.bind(theta)
    update = jax.jit(tx.update, static_argnames="is_valid")
    params, grads = _problem(5)
    state = tx.init({**params, "empty": EMPTY})
    wide = jax.tree.map(np.float64, (theta, params, grads))
    slow_params = wide[1]
    slow = SlowRNNMLP(wide[0], optimizer.arguments, slow_params)
    losses = [2.0, 1.5, 1.9, 1.7, 1.6]
    for t, (g, loss) in enumerate(zip(grads, losses, strict=True)):
        is_valid = t == 2
        updates, state = update(
            {**g, "empty": EMPTY},
            state,
            {**params, "empty": EMPTY},
            value=loss,
            is_valid=is_valid,
        )
        assert updates.pop("empty").shape == (0, 3)
        slow.loss = loss
        expected = slow.update(wide[2][t], slow_params, loss, is_valid)
        assert_close(updates, expected, rtol=0, atol=2e-6)
        assert all(np.abs(u).max() > 0.01 for u in expected.values()) or is_valid
        params = optax.apply_updates(params, updates)
        slow_params = {k: p + expected[k] for k, p in slow_params.items()}
    assert slow.t == state.count == 5
    assert (slow.valid.n, slow.train.n) == (1, 4)
    for fast, slow_loss in (
        (state.train_loss, slow.train),
        (state.valid_loss, slow.valid),
    ):
        np.testing.assert_allclose(fast.mean, slow_loss.mean, rtol=1e-6)
        np.testing.assert_allclose(fast.variance, slow_loss.var, rtol=1e-5)
        assert fast.count == slow_loss.n
    np.testing.assert_allclose(state.grad_scale, slow.scale, rtol=1e-5)
    for d in range(2):
        for fast, slow_moment in ((state.momentum[d], slow.m), (state.rms[d], slow.v)):
            expected = {k: x[..., d] for k, x in slow_moment.items()}
            assert_close({k: fast[k] for k in expected}, expected)
    np.testing.assert_allclose(state.lstm.cell, slow.cell, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.lstm.hidden, slow.hidden, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.from_mlp, slow.from_mlp, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.from_lstm, slow.from_lstm, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", few(["float32", "bfloat16"], ["bfloat16"]))
@pytest.mark.parametrize("is_valid", [False, True])
def test_kind_of_call_may_be_traced(is_valid, dtype):
    optimizer = l2o.rnn_mlp(**RNN_MLP)
    tx = optimizer.bind(_noisy_theta(optimizer))
    params, (grads, *_) = optax.tree.cast(_problem(1), dtype)
    state = tx.init(params)
    update = jax.jit(tx.update)
    traced = update(grads, state, params, value=2.0, is_valid=jnp.bool_(is_valid))
    update = jax.jit(tx.update, static_argnames="is_valid")
    static = update(grads, state, params, value=2.0, is_valid=is_valid)
    # bfloat16 keeps eight bits of each number.
    atol = 1e-6 if dtype == "float32" else 1e-2
    assert jax.tree.map(jnp.result_type, traced) == jax.tree.map(
        jnp.result_type, static
    )
    assert_close(*optax.tree.cast((traced, static), "float32"), atol=atol)
    moved = float(optax.tree.norm(optax.tree.cast(traced[0], "float32")))
    assert (moved == 0) == is_valid


def test_gradient_through_parameters_that_are_zero_is_finite():
    optimizer = l2o.rnn_mlp(**RNN_MLP)
    tx = optimizer.bind(_noisy_theta(optimizer))
    grads = normal(1, {"w": (3, 2)})

    def moved(scale):
        params = {"w": scale * jnp.zeros((3, 2))}
        updates, _ = tx.update(grads, tx.init(params), params, value=1.0)
        return jnp.sum(updates["w"] ** 2)

    assert jax.jit(jax.grad(moved))(1.0) == 0


def test_nn_adam_equals_its_slow_form():
    optimizer = l2o.nn_adam(**NN_ADAM)
    theta = _noisy_theta(optimizer)
    # Close to where they are cut: the learning rate at 1e3, b1 at 0.
    theta.update(lr=np.float32(0.69), b1=np.float32(-0.01))
    tx = optimizer.bind(theta)
    params, grads = _problem()
    for g in grads:
        g["three"] = 100 * g["three"]  # beyond the bound of 1000
    state = tx.init({**params, "empty": EMPTY})
    update = jax.jit(tx.update)
    wide = jax.tree.map(np.float64, (theta, params, grads))
    slow = slow_nn_adam(wide[0], optimizer.arguments, *wide[1:])
    names = sorted(SHAPES)
    met = set()
    for g, expected in zip(grads, slow, strict=True):
        updates, state = update(
            {**g, "empty": EMPTY}, state, {**params, "empty": EMPTY}
        )
        slow_updates, hyper, hidden, cell, m, v = expected
        assert updates.pop("empty").shape == (0, 3)
        assert_close(updates, slow_updates, rtol=2e-4, atol=0)
        for i, k in enumerate(names):
            y = [hyper[k][key] for key in ("lr", "b1", "b2", "eps")]
            np.testing.assert_allclose(state.hyper[i], y, rtol=0, atol=1e-5)
            met |= {("lr", y[0] > 0.690775), ("b1", y[1] > -1e-6)}
            np.testing.assert_allclose(state.momentum[k], m[k], rtol=1e-4)
            np.testing.assert_allclose(state.rms[k], v[k], rtol=1e-4)
        np.testing.assert_allclose(state.lstm.hidden, hidden, rtol=0, atol=1e-5)
        np.testing.assert_allclose(state.lstm.cell, cell, rtol=0, atol=1e-5)
        params = optax.apply_updates(params, updates)
    assert len(met) == 4  # both bounds were reached by some tensors, not by others


@pytest.mark.parametrize(
    ("y", "lr", "beta", "eps"),
    [(-3.0, 1e-8, 1 - math.exp(-10), 1e-11), (3.0, 1e3, 0.0, 1e4)],
    ids=["lowest", "highest"],
)
def test_nn_adam_keeps_hyper_parameters_in_range(y, lr, beta, eps):
    optimizer = l2o.nn_adam(lstm_hidden_size=1)
    theta = optimizer.init_theta(jax.random.key(0))
    theta.update(dict.fromkeys(("lr", "b1", "b2", "eps"), jnp.float32(y)))
    tx = optimizer.bind(theta)
    g = normal(1, {"w": (3, 2)})["w"]
    updates, state = tx.update(g, tx.init(g), g)
    m, v = (1 - beta) * np.float64(g), (1 - beta) * np.float64(g) ** 2
    expected = -lr * (1 + eps) / (eps + np.sqrt(v + 1e-10)) * m
    # The smallest 1 - b is known to three digits, as published.
    np.testing.assert_allclose(updates, expected, rtol=2e-3)
    bounds = np.log([lr, 1 - beta, 1 - beta, eps]) / 10
    np.testing.assert_allclose(state.hyper, [bounds], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        (l2o.rnn_mlp(), 35_799),
        (l2o.nn_adam(), 6_856),
        (l2o.nn_adam(lstm_hidden_size=64), 21_896),
    ],
    ids=["rnn_mlp", "nn_adam", "nn_adam-64"],
)
def test_theta_has_the_published_size(optimizer, size):
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == size


@pytest.mark.parametrize(
    ("optimizer", "per_parameter", "per_tensor"),
    [(l2o.rnn_mlp(), 40, 576), (l2o.nn_adam(), 8, 272)],
    ids=["rnn_mlp", "nn_adam"],
)
def test_state_has_the_documented_size(optimizer, per_parameter, per_tensor):
    def state(params):
        return optimizer.bind(optimizer.init_theta(jax.random.key(0))).init(params)

    def size(*shapes):
        leaves = jax.tree.leaves(jax.eval_shape(state, [*map(jnp.ones, shapes)]))
        return sum(x.size * x.dtype.itemsize for x in leaves)

    assert size((7, 3)) - size((2, 3)) == 15 * per_parameter
    assert size((2, 3), (2, 2)) - size((2, 5)) == per_tensor


def test_messages_start_with_unit_norm():
    theta = l2o.rnn_mlp(from_mlp_size=4000, lstm_hidden_size=1).init_theta(
        jax.random.key(0)
    )
    message = theta["initial_from_mlp"]
    np.testing.assert_allclose(np.sum(message**2), 1, rtol=0.1)
    # Of a normal distribution cut at two deviations, with its deviation restored.
    largest = 2 / 0.87962566 / math.sqrt(4000)
    assert 0.98 * largest < np.abs(message).max() <= 1.0001 * largest


def test_nn_adam_starts_as_the_adam_it_was_given():
    optimizer = l2o.nn_adam(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3)
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params, grads = normal(0, SHAPES), normal(1, SHAPES)
    state = tx.init(params)
    for n in (1, 2):
        updates, state = tx.update(grads, state, params)
        for k, g in grads.items():
            m, v = (1 - 0.8**n) * g, (1 - 0.95**n) * g**2
            expected = -0.02 * 1.001 / (1e-3 + np.sqrt(v + 1e-10)) * m
            np.testing.assert_allclose(updates[k], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [l2o.rnn_mlp(**RNN_MLP), l2o.nn_adam(**NN_ADAM)],
    ids=["rnn_mlp", "nn_adam"],
)
def test_order_of_tensors_does_not_matter(optimizer):
    tx = optimizer.bind(_noisy_theta(optimizer))
    params, grads = _problem(2)
    new_names = dict(zip(SHAPES, "cbdae", strict=True))

    def path(params, grads):
        state = tx.init(params)
        for g in grads:
            updates, state = tx.update(g, state, params, value=1.0)
            yield updates

    def renamed(tree):
        return {new_names[k]: x for k, x in tree.items()}

    other = path(renamed(params), map(renamed, grads))
    for updates, others in zip(path(params, grads), other, strict=True):
        assert_close(renamed(updates), others, rtol=1e-4)


@pytest.mark.parametrize("is_valid", [False, True])
def test_missing_loss_names_the_call_to_write(is_valid):
    optimizer = l2o.rnn_mlp(**RNN_MLP)
    assert optimizer.needs == ("params", "value")
    tx = optimizer.bind(_noisy_theta(optimizer))
    params = normal(0, {"w": (3, 2)})
    remedy = (
        r"^rnn_mlp needs the loss: call "
        r"`updates, state = tx\.update\(grads, state, params, value=loss\)`"
    )
    with pytest.raises(ValueError, match=remedy):
        tx.update(params, tx.init(params), params, is_valid=is_valid)
