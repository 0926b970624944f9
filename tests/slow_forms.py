"""Slow forms, in NumPy and float64, of VeLO and what came of it.

Written from the papers and the published programs; nothing here is taken from `l2o`.
"""

import numpy as np

NUM_STEPS = 40
GROUPS = {  # features of the network, with the number of each
    **{"g": 1, "clip_g": 1, "p": 1, "m": 3, "rms": 1, "m_norm": 3, "rsqrt_rms": 1},
    **{"fac_g": 3, "g_norm": 1, "row": 3, "col": 3, "rsqrt_row": 3, "rsqrt_col": 3},
    "fac_m": 3,
}


def rsqrt(x, floor=0.0):
    return 1 / np.sqrt(np.maximum(x, floor))


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(theta, x):
    return x @ theta["w"] + theta["b"]


def normalise(x, axes, eps):
    return x * rsqrt(np.mean(x**2, axes, keepdims=True) + eps)


def network(nn, x, activation=relu):
    depth = len(nn) // 2
    for i in range(depth):
        x = x @ nn[f"w{i}"][: x.shape[-1]] + nn[f"b{i}"]
        x = activation(x) if i < depth - 1 else x
    return x


def float32(decays):
    return np.float64(np.float32(decays))


class SlowTensor:
    """Accumulators and features of one tensor, along a trailing axis."""

    def __init__(self, momentum_decays, rms_decays, adafactor_decays, fused=False):
        self.d = [*map(float32, (momentum_decays, rms_decays, adafactor_decays))]
        self.m = self.rms = self.row = self.col = 0
        self.n, self.fused = 0, fused

    def see(self, g):
        g = (g.reshape(1) if g.ndim == 0 else g)[..., None]
        d_m, d_r, d_v = self.d
        self.n += 1
        self.axes = None
        self.m = d_m * self.m + (1 - d_m) * g
        self.rms = d_r * self.rms + (1 - d_r) * g**2
        row = col = g**2 + 1e-30
        if g.ndim > 2:
            # Python's sort is stable: of equal axes the later one counts as larger.
            *_, d1, d0 = sorted(range(g.ndim - 1), key=g.shape.__getitem__)
            self.axes = d1, d0
            row, col = np.mean(row, d0, keepdims=True), np.mean(col, d1, keepdims=True)
        self.row = d_v * self.row + (1 - d_v) * row
        self.col = d_v * self.col + (1 - d_v) * col

    def factor(self, row, col):
        if self.axes is None:
            return rsqrt(row + 1e-9, 1e-9)
        d1, d0 = self.axes
        mean = np.mean(row, d1, keepdims=True)
        if self.fused:  # as the kernels' host code: the decays are the leading axis
            mean = np.moveaxis(row, -1, 0).mean(d1 - (d1 > d0), keepdims=True)
            mean = np.moveaxis(mean, 0, -1)
        return rsqrt(row / (mean + 1e-9), 1e-9) * rsqrt(col, 1e-9)

    def corrected(self):
        c_m, c_r, c_v = (1 - d**self.n for d in self.d)
        return self.m / c_m, self.rms / c_r, self.row / c_v, self.col / c_v

    def features(self, g, p, names, *, rms_eps=1e-6, vector_eps=0.0, correct=False):
        g, p = (x.reshape(1) if x.ndim == 0 else x for x in (g, p))
        g, p, one = g[..., None], p[..., None], np.ones((*g.shape, 1))
        raw = self.m, self.rms, self.row, self.col
        m, rms, row, col = self.corrected() if correct else raw
        if self.axes is None:
            fac_m = m * (row + vector_eps) ** -0.5
        else:
            fac_m = m * self.factor(row, col)
        every = {
            "g": g,
            "clip_g": np.clip(g, -0.1, 0.1),
            "p": p,
            "m": m,
            "rms": rms,
            "m_norm": m * rsqrt(rms + rms_eps),
            "rsqrt_rms": rsqrt(rms + rms_eps),
            "fac_g": g * self.factor(self.row, self.col),
            "g_norm": g * rsqrt(rms + rms_eps),
            "row": one * row,
            "col": one * col,
            "rsqrt_row": one * rsqrt(row + 1e-8),
            "rsqrt_col": one * rsqrt(col + 1e-8),
            "fac_m": fac_m,
        }
        return np.concatenate([every[name] for name in GROUPS if name in names], -1)


def slow_decays(arguments):
    kinds = ("momentum_decays", "rms_decays", "adafactor_decays")
    return [arguments[kind] for kind in kinds]


def log_size(x):
    return 0.5 * np.clip(np.log(1e-8 + np.abs(10 * np.atleast_1d(x))), -5, 5)


class SlowLoss:
    def __init__(self, num_steps):
        self.d = np.exp(-1 / np.logspace(1, np.log10(num_steps), 10))
        self.mean, self.least, self.seen = np.zeros(10), np.full(10, 999999999999.0), 0

    def see(self, loss):
        correct = 1 - self.d ** (self.seen + 1)
        largest = np.max(self.mean / correct) if self.seen else loss
        loss = min(2 * abs(largest), loss)
        self.mean = self.d * self.mean + (1 - self.d) * loss
        self.seen += 1
        now = self.mean / correct
        self.least = np.minimum(self.least, now)
        fast, slow, least = now[:-1], now[1:], self.least[:-1]
        feature = (fast - least) / np.maximum(1e-8, slow - least) - 1
        return np.clip(feature, -1, 1) * (self.seen > 2)


class SlowHyper:
    """VeLO, Celo and Celo-Adam: a row of the LSTM per tensor, names sorted."""

    def __init__(self, name, theta, a, params):
        self.name, self.theta, self.a, self.t = name, theta, a, 0
        bugged = "bugged_loss_features" in a.get("published", ())
        self.loss = SlowLoss(10 if bugged else NUM_STEPS)
        rows = np.ones((len(params), 1))
        init = theta["lstm_init"]
        self.hidden, self.cell = rows * init["hidden"], rows * init["cell"]
        if name == "celo_adam":
            decays = [a["b1"]], [a["b2"]], [0.9]
        else:
            decays = slow_decays(a)
        self.tensors = {k: SlowTensor(*decays) for k in params}

    def row(self, p, tensor, loss):
        fractions = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
        parts = [np.tanh(10 * (self.t / NUM_STEPS - fractions)), loss]
        if self.name == "velo":
            kappa = rsqrt(np.mean(p**2), 1e-9)
            start = tensor.n == 0
            m = np.zeros((*p.shape, 3)) if start else kappa * tensor.m
            rms = np.zeros((*p.shape, 1)) if start else kappa * tensor.rms
            m, rms = m.reshape(-1, 3), rms.reshape(-1, 1)
            parts += [
                log_size(np.mean(rms)),
                np.eye(5)[np.sum(np.array(p.shape) > 1)],
                log_size(np.var(m, 0)),
                log_size(np.mean((rms - np.mean(m, 0)) ** 2, 0)),
            ]
        if self.a["validation_mode"] is not None:
            parts.append([float(self.a["validation_mode"])])
        return np.concatenate(parts)

    def hidden_rows(self, params, loss):
        """The output of the LSTM after one step more."""
        theta, a = self.theta, self.a
        loss = self.loss.see(1.0 if a["constant_loss"] else loss)
        x = np.stack([self.row(params[k], t, loss) for k, t in self.tensors.items()])
        if a["mix_layers"]:
            pooled = np.max(relu(linear(theta["mix"]["pooled"], x)), 0, keepdims=True)
            x = linear(theta["mix"]["direct"], x) + pooled
        gates = linear(theta["lstm"], np.concatenate([x, self.hidden], 1))
        i, g, f, o = np.split(gates, 4, 1)
        cell = sigmoid(f + 1) * self.cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        if "bugged_next_lstm_state" not in a.get("published", ()):
            self.hidden, self.cell = hidden, cell
        self.hidden = (1 - a["rnn_state_decay"]) * self.hidden
        self.cell = (1 - a["rnn_state_decay"]) * self.cell
        return hidden

    def schedule(self, params, loss):
        """Per tensor the mixing weights and the step size."""
        theta, a = self.theta, self.a
        hidden = self.hidden_rows(params, loss)
        step_size = linear(theta["step_size"], hidden)[:, 0]
        if self.name != "velo":
            step_size = 0.1 * np.exp(step_size)
        if a.get("train_phase") == 1:
            step_size = np.ones_like(step_size)
        if self.name == "celo_adam":
            return [None] * len(hidden), step_size
        controls = linear(theta["controls"], hidden)
        if self.name == "velo":
            return a["ff_mult"] * controls / controls.shape[1], step_size
        controls = np.exp(controls) / np.sum(np.exp(controls), 1, keepdims=True)
        return controls / controls.shape[1], step_size

    def step(self, g, p, tensor, controls):
        a = self.a
        p_scale = np.sqrt(np.mean(p**2) + 1e-9)
        if self.name == "celo_adam":
            m, v = tensor.m, tensor.rms
            if a["bias_correction"]:
                m, v, *_ = tensor.corrected()
            step = a["step_mult"] * m / (a["eps"] + np.sqrt(v + 1e-10))
            return step.reshape(p.shape) * (p_scale if a["param_scale_mult"] else 1)
        nn = {k: np.tensordot(controls, w, 1) for k, w in self.theta["bank"].items()}
        x = tensor.features(g, p, a["features"])
        out = network(nn, normalise(x, tuple(range(x.ndim - 1)), 1e-5))
        step = out[..., 0] * np.exp(a["exp_mult"] * out[..., 1]) * a["step_mult"]
        if a["param_scale_bound"] is not None:
            p_scale = min(p_scale, a["param_scale_bound"] * p.size**0.5)
        if a["param_scale_mult"]:
            step = step * p_scale
        if a["precondition_output"]:
            step = step * rsqrt(tensor.rms[..., -1] + 1e-6)
        return step.reshape(p.shape)

    def update(self, grads, params, loss):
        controls, step_sizes = self.schedule(params, loss)
        self.t += 1
        for (k, tensor), c, eta in zip(self.tensors.items(), controls, step_sizes):
            g = np.clip(grads[k], -1000, 1000)
            tensor.see(g)
            yield k, -eta * self.step(g, params[k], tensor, c)


def to_torch(x):
    """(..., in, out) to (out, in, ...)."""
    return np.moveaxis(x, (-1, -2), (0, 1)) if x.ndim > 1 else x


def from_torch(x):
    return np.moveaxis(x, (0, 1), (-1, -2)) if x.ndim > 1 else x


def scales(params):
    """Per tensor its mean square, at least a hundredth of the typical one; the latter.

    Typical is the median over matrices, or over vectors, each counted by its size.
    """
    counted = [p for p in params.values() if np.any(p) and p.ndim > 1]
    counted = counted or [p for p in params.values() if np.any(p)]
    squares = sorted((np.mean(p**2), p.size) for p in counted)
    repeated = [square for square, size in squares for _ in range(size)]
    middle = repeated[(len(repeated) - 1) // 2] if repeated else 0.0
    typical = max(middle, 1e-6)
    return {k: max(np.mean(p**2), 0.01 * typical) for k, p in params.items()}, typical


def scale(k, params):
    own, typical = scales(params)
    return np.sqrt(own[k] if params[k].ndim > 1 else typical)


def scale_limits(params):
    """What `scale` is at the start, or what it is for outputs like the inputs."""
    usual = {k: p.shape[-1] / p.size for k, p in params.items() if p.ndim > 1}
    size = sum(params[k].size for k in usual)
    whole = sum(params[k].size * x for k, x in usual.items()) / size if size else 1.0
    return {k: max(scale(k, params), np.sqrt(usual.get(k, whole))) for k in params}


def warmup_cosine(count):
    done = count / NUM_STEPS
    if done < 0.05:
        return min((count + 1) / (0.05 * NUM_STEPS), 1.0)
    return (1 + np.cos(np.pi * (done - 0.05) / 0.95)) / 2


class SlowCelo2:
    """celo2_base, both forms of celo2, elo_celo2; PyTorch's are run in its layout."""

    def __init__(self, name, theta, a, params):
        self.nn, self.a, self.name, self.t = theta["nn"], a, name, 0
        self.limits = scale_limits(params)
        self.torch = name == "elo_celo2" or a.get("variant") == "pylo"
        self.tensors = {k: SlowTensor(*slow_decays(a)) for k in params}
        self.m, self.v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)

    def routed(self, k, g):
        """The tests' regular expression is `square|vector`."""
        if self.name == "celo2_base" or self.a["regex_1d"] is None:
            return False
        return k in ("square", "vector") or (self.torch and g.ndim < 2)

    def adam(self, k, g, p):
        a = self.a
        if self.name == "elo_celo2":
            m, v = (x[..., 0].reshape(p.shape) for x in self.tensors[k].corrected()[:2])
            return m / (np.sqrt(v) + 1e-8)
        b1, b2 = float32(a["adam_b1"]), float32(a["adam_b2"])
        self.m[k] = m = b1 * self.m[k] + (1 - b1) * g
        self.v[k] = v = b2 * self.v[k] + (1 - b2) * g**2
        correct = a["adam_bias_correction"]
        if self.torch if correct is None else correct:
            m, v = m / (1 - b1**self.t), v / (1 - b2**self.t)
        if self.torch:
            return m / (np.sqrt(v) + a["adam_eps"])
        return m * rsqrt(v + a["adam_eps"])

    def orthogonal(self, x):
        a, b, c = self.a["ns_coeffs"]
        flip = x.shape[-2] > x.shape[-1]
        x = np.swapaxes(x, -1, -2) if flip else x
        x = x / (np.sqrt(np.sum(x**2, (-1, -2), keepdims=True)) + self.a["ns_eps"])
        for _ in range(self.a["ns_iters"]):
            gram = x @ np.swapaxes(x, -1, -2)
            x = a * x + (b * gram + c * gram @ gram) @ x
        return np.swapaxes(x, -1, -2) if flip else x

    def step(self, g, p, tensor):
        a = self.a
        vector = ("row", "col", "rsqrt_row", "rsqrt_col", "fac_m")
        names = [k for k in a["features"] if g.ndim > 1 or k not in vector]
        correct = a["bias_correction"]
        x = tensor.features(g, p, names, rms_eps=1e-8, correct=correct)
        over = tuple(range(x.ndim - 1))[-2:]
        x = normalise(x, over, 1e-9) if a["normalize_input"] else x
        out = network(self.nn, x, {"relu": relu, "tanh": np.tanh}[a["activation"]])
        size = np.mean(out[..., 1]) if a["aggregate_mag"] else out[..., 1]
        step = out[..., 0] * np.exp(a["exp_mult"] * size)
        if a["param_scale_mult"]:
            step = step * np.sqrt(np.mean(p**2) + 1e-9)
        if a.get("orthogonalize") and g.ndim > 1:
            step = self.orthogonal(step)
        step = normalise(step, over, 1e-9) if a["normalize_output"] else step
        step = step * a["step_mult"]
        if a["precondition_output"]:
            rms = tensor.corrected()[1] if correct else tensor.rms
            step = step * rsqrt(rms[..., -1] + 1e-6)
        return step.reshape(p.shape)

    def update(self, grads, params, loss):
        a = self.a
        self.t += 1
        grads = clip_all(grads, a.get("max_norm"))
        rate, decay = a["learning_rate"], a["weight_decay"]
        if a.get("schedule") == "cosine":
            rate = rate * warmup_cosine(self.t - 1)
        mult = a.get("mult_1d")
        if mult is None:
            mult = 1 if self.torch else 20
        decay_1d = a.get("weight_decay_1d")
        decay_1d = decay if decay_1d is None else decay_1d
        bound = a.get("gradient_bound", 1000)
        for k, tensor in self.tensors.items():
            g, p = grads[k], params[k]
            adam = self.routed(k, g)
            g = g if adam and not self.torch else np.clip(g, -bound, bound)
            if self.torch:
                g, p = to_torch(g), to_torch(p)
            tensor.see(g)
            if adam:
                update = -mult * rate * (self.adam(k, g, p) + decay_1d * p)
            else:
                s = 1.0
                if a.get("relative"):
                    s = min(scale(k, params), self.limits[k])
                update = -rate * (s * self.step(g, p, tensor) + decay * p)
            yield k, from_torch(update) if self.torch else update


def clip_all(grads, max_norm):
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    scale = 1.0 if max_norm is None or not norm > max_norm else max_norm / norm
    return {k: scale * g for k, g in grads.items()}


class SlowNormalizedVeLO(SlowHyper):
    """Rows like VeLO's with a feature more, steps like Celo2's."""

    def __init__(self, name, theta, a, params):
        none = dict.fromkeys(("validation_mode", "constant_loss"))
        super().__init__(
            "velo",
            theta,
            {**a, **none, "mix_layers": True, "rnn_state_decay": 0},
            params,
        )
        fixed = dict.fromkeys(("bias_correction", "aggregate_mag", "param_scale_mult"))
        once = {"step_mult": 1.0, "exp_mult": 0.0, "precondition_output": False}
        same = {"activation": "relu", "normalize_input": 1, "normalize_output": 1}
        same |= {"ns_coeffs": (3.4445, -4.775, 2.0315), "ns_iters": 5, "ns_eps": 1e-8}
        self.rule = SlowCelo2(
            "celo2_base", {"nn": theta["nn"]}, {**a, **fixed, **once, **same}, {}
        )
        self.limits = scale_limits(params)

    def row(self, p, tensor, loss):
        own, every = scales(self.params)
        k = next(k for k, x in self.tensors.items() if x is tensor)
        return np.append(super().row(p, tensor, loss), np.log(own[k] / every) / 2)

    def update(self, grads, params, loss):
        self.params = params
        hidden = self.hidden_rows(params, loss)
        learned = linear(self.theta["step_size"], hidden)[:, 0]
        rate = self.a["step_mult"] * warmup_cosine(self.t)
        self.t += 1
        for (k, tensor), x in zip(self.tensors.items(), learned):
            g, p = np.clip(grads[k], -1000, 1000), params[k]
            tensor.see(g)
            s = min(scale(k, params), self.limits[k])
            step = (
                np.exp(self.a["schedule_mult"] * x) * s * self.rule.step(g, p, tensor)
            )
            yield k, -rate * (step + self.a["weight_decay"] * p)


class SlowElo:
    """elo and mulo; in PyTorch's layout where that is asked for."""

    def __init__(self, name, theta, a, params):
        self.theta, self.a, self.name, self.t = theta, a, name, 0
        self.torch = a["layout"] == "torch"
        decays = slow_decays(a)
        if name == "mulo":
            kinds = ("momentum_decays", "rms_decays", "adafactor_decays")
            decays = [
                np.clip(1 - (1 - float32(d)) * np.exp(10 * theta[kind]), 0, 1)
                for d, kind in zip(decays, kinds)
            ]
        self.tensors = {
            k: SlowTensor(*decays, "fused_row_mean" in a["published"]) for k in params
        }

    def update(self, grads, params, loss):
        a = self.a
        if self.name == "elo":
            grads = clip_all(grads, a["max_norm"])
            most = float(np.finfo(np.float32).max)
            grads = {k: np.nan_to_num(g, posinf=most) for k, g in grads.items()}
        tau = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
        time = np.tanh(self.t / tau - 1)
        self.t += 1
        for k, tensor in self.tensors.items():
            g, p = grads[k], params[k]
            if a.get("max_tensor_norm") is not None:
                norm = np.sqrt(np.sum(g**2))
                g = g * min(1.0, a["max_tensor_norm"] / (norm + 1e-6))
            if self.torch:
                g, p = to_torch(g), to_torch(p)
            tensor.see(g)
            names = [name for name in GROUPS if name not in ("clip_g", "g_norm")]
            x = tensor.features(g, p, names, vector_eps=1e-6)
            x = normalise(x, tuple(range(x.ndim - 1)), 1e-5)
            x = np.concatenate([x, np.broadcast_to(time, (*x.shape[:-1], 11))], -1)
            out = network(self.theta["nn"], x)
            step = out[..., 0] * np.exp(a["exp_mult"] * out[..., 1])
            step = a.get("step_mult", 1.0) * step.reshape(p.shape)
            update = -a["learning_rate"] * (step + a.get("weight_decay", 0.0) * p)
            yield k, from_torch(update) if self.torch else update
