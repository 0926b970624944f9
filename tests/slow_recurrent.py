"""Slow forms of `rnn_mlp` and `nn_adam`, in float64."""

import math

import jax.numpy as jnp
import numpy as np

SHAPES = {
    "matrix": (5, 3),
    "vector": (4,),
    "scalar": (),
    "three": (2, 3, 4),
    "five": (2, 1, 2, 1, 3),
}


EMPTY = jnp.zeros((0, 3))


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


def slow_nn_adam(theta, arguments, params, grads):
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
