"""`rnn_mlp`, `nn_adam` and `nadamw_baseline` against slow or closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, few, normal

import l2o

SHAPES = {
    "matrix": (5, 3),
    "vector": (4,),
    "scalar": (),
    "three": (2, 3, 4),
    "five": (2, 1, 2, 1, 3),
}


EMPTY = jnp.zeros((0, 3))


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


def _log_abs(x):
    return np.clip(np.log(1e-8 + np.abs(x)), -5, 5)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _slow_lstm(theta, x, hidden, cell):
    gates = np.concatenate([x, hidden], 1) @ theta["w"] + theta["b"]
    i, g, f, o = np.split(gates, 4, 1)
    cell = _sigmoid(f + 1) * cell + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(cell), cell


def _by_name(features):
    """Concatenated in alphabetic order, which is the published one."""
    return np.concatenate([np.ravel(features[name]) for name in sorted(features)])


class SlowLoss:
    def __init__(self, decay):
        self.decay, self.mean, self.var, self.n = decay, 0.0, 0.0, 0

    def see(self, loss):
        d = self.decay
        self.mean = d * self.mean + (1 - d) * loss
        self.var = d * self.var + (1 - d) * (self.mean - loss) ** 2
        self.n += 1

    def corrected(self, x):
        return x / max(1 - self.decay**self.n, 1e-8)

    def normalise(self, loss):
        centred = loss - self.corrected(self.mean)
        return np.clip(centred / np.sqrt(self.corrected(self.var) + 1e-8), -5, 5)


class SlowRNNMLP:
    """Float64; features in dictionaries, one trailing axis for decays and features."""

    def __init__(self, theta, arguments, params):
        self.theta, self.arguments = theta, arguments
        self.names = sorted(params)
        zeros = {k: np.zeros((*p.shape, 2)) for k, p in params.items()}
        self.m, self.v = dict(zeros), dict(zeros)
        n = len(self.names)
        self.hidden = np.repeat(theta["lstm_init"]["hidden"], n, 0)
        self.cell = np.repeat(theta["lstm_init"]["cell"], n, 0)
        self.from_mlp = np.repeat(theta["initial_from_mlp"][None], n, 0)
        self.from_lstm = theta["initial_from_lstm"]
        self.train, self.valid = SlowLoss(0.9), SlowLoss(0.95)
        self.t, self.clip_t, self.scale = 0, 1, 0.01

    def update(self, grads, params, loss, is_valid=False):
        self.t += 1
        if is_valid:
            self.valid.see(loss)
            return {k: np.zeros_like(p) for k, p in params.items()}
        self.train.see(loss)
        bound = 10 * self.scale / (1 - 0.99**self.clip_t)
        grads = {k: np.clip(g, -bound, bound) for k, g in grads.items()}
        square = np.mean([np.mean(grads[k] ** 2) for k in self.names])
        self.scale = 0.99 * self.scale + 0.01 * np.sqrt(square + 1e-8)
        self.clip_t += 1
        decays = np.array(self.arguments["momentum_decays"])
        for k in self.names:
            g = grads[k][..., None]
            self.m[k] = decays * self.m[k] + (1 - decays) * g
            self.v[k] = decays * self.v[k] + (1 - decays) * g**2

        rows = [
            self.tensor_features(grads[k], params[k], self.m[k], self.v[k], message)
            for k, message in zip(self.names, self.from_mlp, strict=True)
        ]
        theta = self.theta
        self.hidden, self.cell = _slow_lstm(
            theta["lstm"], np.stack(rows), self.hidden, self.cell
        )
        to_lstm = self.hidden @ theta["rnn_to_in"]["w"] + theta["rnn_to_in"]["b"]
        self.from_lstm = np.mean(to_lstm, 0)
        to_mlp = self.hidden @ theta["rnn_to_ff"]["w"] + theta["rnn_to_ff"]["b"]
        updates, messages = {}, []
        for k, row in zip(self.names, to_mlp, strict=True):
            out = self.network(grads[k], params[k], self.m[k], self.v[k], row)
            step = out[:, 0] * np.exp(0.5 * out[:, 1]) * 0.1
            updates[k] = -step.reshape(params[k].shape)
            messages.append(np.mean(out[:, 2:], 0))
        self.from_mlp = np.stack(messages)
        return updates

    def tensor_features(self, g, p, m, v, message):
        features = {
            "from_lstm": self.from_lstm,
            "from_mlp": message,
            "g_norm": _log_abs(np.linalg.norm(g.ravel())),
            "is_scalar": 1.0 if p.shape == () else -1.0,
            "mean_ms_mag": _log_abs(np.mean(m)),
            "mean_ms_sign": np.sign(np.mean(m)),
            "mean_rms": _log_abs(np.mean(v)),
            "mean_sign": np.sign(np.mean(v)),
            "mean_v_mag": _log_abs(np.mean(p)),
            "mean_v_sign": np.sign(np.mean(p)),
            "norm_weight": _log_abs(np.linalg.norm(p.ravel())),
            "train_loss_feat": self.train.normalise(self.loss),
            "valid_loss_feat": self.train.normalise(
                self.valid.corrected(self.valid.mean)
            ),
            "var_ms": _log_abs(np.var(m)),
            "var_rms": _log_abs(np.var(v)),
            "var_v": _log_abs(np.var(p)),
        }
        for j in range(4):
            size = p.shape[j] if j < p.ndim else 1
            features[f"shape_{j}"] = np.log(size) - 1
        return _by_name(features)

    def network(self, g, p, m, v, row):
        n = p.size
        m, v = m.reshape(n, 2), v.reshape(n, 2)
        features = {
            "flat_g": g.reshape(n, 1),
            "flat_v": p.reshape(n, 1),
            "log_abs_v": np.log(np.abs(p.reshape(n, 1)) + 1e-8),
            "m": m,
            "rms": v,
            "rms_scaled_g": m / np.sqrt(v + 1e-6),
            "rsqrt": 1 / np.sqrt(v + 1e-6),
        }
        x = np.concatenate([features[name] for name in sorted(features)], 1)
        x = x / np.sqrt(1e-5 + np.mean(x**2, 0))
        taus = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000]
        constants = [
            *(math.sin((self.t - 1) / (tau * math.pi)) for tau in taus),
            math.log(len(self.names)) - 1,
            np.log(np.linalg.norm(p.ravel()) + 1e-8),
            math.log(n),
            *row,
        ]
        x = np.concatenate([x, np.tile(constants, (n, 1))], 1)
        nn = self.theta["nn"]
        hidden = np.maximum(x @ nn["w0"] + nn["b0"], 0)
        return hidden @ nn["w1"] + nn["b1"]


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


def _slow_nn_adam(theta, arguments, params, grads):
    """Float64; hyper-parameters are decoded and encoded as published."""
    names = sorted(params)
    keys = ("lr", "b1", "b2", "eps")
    decode = {
        "lr": lambda y: np.clip(np.exp(10 * y), 1e-8, 1e3),
        "b1": lambda y: 1 - np.exp(np.clip(10 * y, -10, 0)),
        "b2": lambda y: 1 - np.exp(np.clip(10 * y, -10, 0)),
        "eps": lambda y: np.clip(np.exp(10 * y), 1e-11, 1e4),
    }
    encode = {
        "lr": lambda x: 0.1 * np.log(x),
        "b1": lambda x: 0.1 * np.log(1 - x),
        "b2": lambda x: 0.1 * np.log(1 - x),
        "eps": lambda x: 0.1 * np.log(x),
    }
    hyper = {k: {key: theta[key] for key in keys} for k in names}
    m = {k: np.zeros_like(params[k]) for k in names}
    v = {k: np.zeros_like(params[k]) for k in names}
    hidden = np.repeat(theta["lstm_init"]["hidden"], len(names), 0)
    cell = np.repeat(theta["lstm_init"]["cell"], len(names), 0)
    for step_grads in grads:
        updates, rows = {}, []
        for k in names:
            g, p, y = np.clip(step_grads[k], -1000, 1000), params[k], hyper[k]
            lr, b1, b2, eps = (decode[key](y[key]) for key in keys)
            m[k] = b1 * m[k] + (1 - b1) * g
            v[k] = b2 * v[k] + (1 - b2) * g**2
            updates[k] = -lr * (1 + eps) / (eps + np.sqrt(v[k] + 1e-10)) * m[k]
            features = {
                "is_bias": 1.0 if p.ndim == 1 else -1.0,
                "is_scalar": 1.0 if p.ndim == 0 else -1.0,
                "mean_gabs_mag": 0.5 * _log_abs(np.mean(np.abs(g))),
                "mean_rms": 0.5 * _log_abs(np.mean(v[k])),
                "mean_sign": np.sign(np.mean(v[k])),
                "var_rms": 0.5 * _log_abs(np.var(v[k])),
            }
            for letter, x in (("g", g), ("m", m[k]), ("p", p)):
                features[f"mean_{letter}_mag"] = 0.5 * _log_abs(np.mean(x))
                features[f"mean_{letter}_sign"] = np.sign(np.mean(x))
                features[f"var_{letter}"] = 0.5 * _log_abs(np.var(x))
            full = {"lr": "lr", "b1": "beta1", "b2": "beta2", "eps": "epsilon"}
            for key in keys:
                features[full[key]] = 0.2 * np.clip(y[key], -5, 5)
            rows.append(_by_name(features))
        hidden, cell = _slow_lstm(theta["lstm"], np.stack(rows), hidden, cell)
        deltas = hidden @ theta["controls"]["w"] + theta["controls"]["b"]
        for k, delta in zip(names, deltas, strict=True):
            for key, change in zip(keys, delta, strict=True):
                y = hyper[k][key] + arguments["step_mult"] * change
                y = y - arguments["decay_strength"] * (y - theta[key])
                hyper[k] = {**hyper[k], key: encode[key](decode[key](y))}
        params = {k: params[k] + updates[k] for k in names}
        yield updates, hyper, hidden, cell, m, v


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
    slow = _slow_nn_adam(wide[0], optimizer.arguments, *wide[1:])
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
