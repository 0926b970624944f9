"""The optimizers of Open-L2O and MS4L2O against slow NumPy versions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import l2o
from l2o._tensors import square_root
from l2o.optimizers._lstm import log_and_sign

SHAPES = {"matrix": (5, 3), "scalar": (), "vector": (4,)}  # in the order of the tree


ALL_ON = {
    "p": ("softplus", 0.7),
    "a": ("exp", 0.3),
    "b": ("sigmoid", 0.9),
    "b1": ("eye", 0.1),
    "b2": ("softplus", 0.2),
}


OPTIMIZERS = {
    "lstm": l2o.lstm(),
    "rnnprop": l2o.rnnprop(),
    "rnnprop-ms4l2o": l2o.rnnprop(variant="ms4l2o"),
    "l2o_scale": l2o.l2o_scale(),
    "l2o_pa": l2o.l2o_pa(),
}


def _problem(optimizer, steps=4):
    """Random theta, nothing zero; parameters; gradients from 1 down to 1e-4."""
    rng = np.random.default_rng(0)
    theta = jax.tree.map(
        lambda x: np.float32(x + 0.2 * rng.standard_normal(x.shape)),
        optimizer.init_theta(jax.random.key(0)),
    )
    sizes = dict(zip(SHAPES, (1, 1e-2, 1e-4)))
    params = {k: np.float32(rng.standard_normal(s)) for k, s in SHAPES.items()}
    grads = [
        {k: np.float32(sizes[k] * rng.standard_normal(s)) for k, s in SHAPES.items()}
        for _ in range(steps)
    ]
    return theta, params, grads


def _run(optimizer, theta, params, grads):
    """The first state, and the updates and state of every step."""

    @jax.jit
    def step(theta, grads, state):
        return optimizer.bind(theta).update(grads, state)

    first = state = jax.jit(lambda theta: optimizer.bind(theta).init(params))(theta)
    path = []
    for g in grads:
        updates, state = step(theta, g, state)
        path.append((updates, state))
    return first, path


def _assert_close(actual, expected, tolerance=1e-5, message=""):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.reshape(actual, expected.shape),
        expected,
        rtol=0,
        atol=tolerance * np.max(np.abs(expected)),
        err_msg=message,
    )


def _wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _slow_linear(weights, x):
    return x @ weights["w"] + weights["b"]


def _slow_stack(theta, layers, x, hidden, cell, forget_bias):
    """One coordinate, one step; changes the lists of states in place."""
    for layer in range(layers):
        weights = theta[f"lstm_{layer}"]
        gates = _slow_linear(weights, np.concatenate([x, hidden[layer]]))
        i, g, f, o = np.split(gates + weights.get("b_hidden", 0), 4)
        cell[layer] = _sigmoid(f + forget_bias) * cell[layer]
        cell[layer] += _sigmoid(i) * np.tanh(g)
        x = hidden[layer] = _sigmoid(o) * np.tanh(cell[layer])
    return x


def _states_of_coordinate(stack, name, index):
    """Hidden and cell states of one coordinate, a list per layer."""
    return (
        [
            np.float64(np.reshape(tree[name], (-1, tree[name].shape[-1]))[index])
            for tree in part
        ]
        for part in (stack.hidden, stack.cell)
    )


def _assert_every_coordinate(first, path, theta, layers, slow):
    """`slow(name, index, hidden, cell)` yields one coordinate's update per step."""
    for name, shape in SHAPES.items():
        for index in range(int(np.prod(shape))):
            hidden, cell = _states_of_coordinate(first.lstm, name, index)
            expected = list(slow(name, index, hidden, cell))
            actual = [np.ravel(updates[name])[index] for updates, _ in path]
            _assert_close(actual, expected, message=f"{name} {index}")
            found = _states_of_coordinate(path[-1][1].lstm, name, index)
            for state, slow_state in zip(found, (hidden, cell)):
                for x, y in zip(state, slow_state):
                    _assert_close(x, y)


@pytest.mark.parametrize(
    ("arguments", "forget_bias"),
    [
        ({}, 1),
        (
            {
                "preprocess_scale": 7,
                "step_mult": 0.5,
                "hidden_layers": 1,
                "hidden_size": 3,
            },
            1,
        ),
        ({"preprocess": "identity", "step_mult": 1, "hidden_layers": 3}, 1),
    ],
    ids=["default", "one_layer", "identity"],
)
def test_lstm_equals_its_slow_form(arguments, forget_bias):
    optimizer = l2o.lstm(**arguments)
    theta, params, grads = _problem(optimizer)
    first, path = _run(optimizer, theta, params, grads)
    assert all(np.all(x == 0) for x in jax.tree.leaves(first))
    arguments = optimizer.arguments
    theta, k = _wide(theta), arguments["preprocess_scale"]

    def slow(name, index, hidden, cell):
        for grad in grads:
            g = np.float64(np.ravel(grad[name])[index])
            x = [max(np.log(abs(g) + 2**-23) / k, -1), np.clip(g * np.exp(k), -1, 1)]
            x = [g] if arguments["preprocess"] == "identity" else x
            x = _slow_stack(
                theta, arguments["hidden_layers"], x, hidden, cell, forget_bias
            )
            yield arguments["step_mult"] * _slow_linear(theta["linear"], x)[0]

    _assert_every_coordinate(first, path, theta, arguments["hidden_layers"], slow)


def test_log_and_sign_at_known_gradients():
    grads = jnp.float32([0, 1e-5, -1e-3, np.exp(-5), -0.1, 1, -np.exp(10)])
    log, sign = log_and_sign(grads, 5.0)
    # At e^-5 the epsilon still shows.
    expected = [-1, -1, -1, np.log(np.exp(-5) + 2**-23) / 5, np.log(0.1) / 5, 0, 2]
    np.testing.assert_allclose(log, expected, rtol=1e-6, atol=1e-7)
    expected = [0, 1e-5 * np.exp(5), -1e-3 * np.exp(5), 1, -1, 1, -1]
    np.testing.assert_allclose(sign, expected, rtol=2e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"variant": "ms4l2o"},
        {"b1": 0.5, "b2": 0.99, "step_mult": 2.0, "hidden_layers": 1, "hidden_size": 3},
        {"variant": "ms4l2o", "step_mult": 2.0, "state_scale": 1.0, "seed": 3},
    ],
    ids=["open_l2o", "ms4l2o", "decays", "ms4l2o-state"],
)
def test_rnnprop_equals_its_slow_form(arguments):
    optimizer = l2o.rnnprop(**arguments)
    theta, params, grads = _problem(optimizer)
    first, path = _run(optimizer, theta, params, grads)
    assert path[-1][1].count == len(grads)
    arguments, theta = optimizer.arguments, _wide(theta)
    b1, b2 = arguments["b1"], arguments["b2"]
    torch = arguments["variant"] == "ms4l2o"
    step = arguments["step_mult"] or (0.1 if torch else 0.01)

    def slow(name, index, hidden, cell):
        m = v = 0
        for t, grad in enumerate(grads, 1):
            g = np.float64(np.ravel(grad[name])[index])
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            root = np.sqrt(v / (1 - b2**t)) + 1e-8
            m_ratio, g_ratio = m / (1 - b1**t) / root, g / root
            x = [g_ratio, m_ratio] if torch else [m_ratio, g_ratio]
            x = _slow_linear(theta["linear_in"], np.array(x))
            x = np.where(x > 0, x, np.expm1(x))
            x = _slow_stack(
                theta, arguments["hidden_layers"], x, hidden, cell, 1 - torch
            )
            out = np.tanh(_slow_linear(theta["linear_out"], x)[0])
            yield -step * out if torch else step * out

    _assert_every_coordinate(first, path, theta, arguments["hidden_layers"], slow)


def test_both_variants_of_rnnprop_move_by_their_published_bounds():
    for variant, bound in (("open_l2o", 0.01), ("ms4l2o", 0.1)):
        optimizer = l2o.rnnprop(variant=variant)
        theta = optimizer.init_theta(jax.random.key(0))
        theta["linear_out"] = {"w": jnp.zeros((20, 1)), "b": jnp.full(1, 20.0)}
        _, path = _run(optimizer, theta, jnp.ones(2), [jnp.ones(2)])
        sign = 1 if variant == "open_l2o" else -1
        np.testing.assert_allclose(path[0][0], sign * bound, rtol=1e-6)


def _slow_gru(theta, x, h, bias=None):
    size = len(h)
    r_bias, u_bias, c_bias = np.split(np.zeros(3 * size) if bias is None else bias, 3)
    gates = _slow_linear(theta["gates"], np.concatenate([x, h]))
    r, u = _sigmoid(gates[:size] + r_bias), _sigmoid(gates[size:] + u_bias)
    c = _slow_linear(theta["candidate"], np.concatenate([x, r * h])) + c_bias
    return u * h + (1 - u) * np.tanh(c)


def _slow_l2o_scale(theta, first, grads, global_input):
    """Yields the updates of every step; returns the last rates and problem state."""
    log_lr = {k: np.ravel(x) for k, x in first.log_lr.items()}
    total = sum(x.size for x in log_lr.values())
    slots = {
        k: {
            "h": [theta["initial"]["coordinate"] for _ in x],
            "tensor": theta["initial"]["tensor"],
            "scl": np.zeros(x.size),
            "inp": np.zeros(x.size),
            "accum": np.zeros((4, x.size)),
            "ms": np.zeros((4, x.size)),
        }
        for k, x in log_lr.items()
    }
    problem = theta["initial"]["problem"]
    for grad in grads:
        mean_lr = sum(np.sum(x) for x in log_lr.values()) / total
        updates = {}
        for name, slot in slots.items():
            g = np.ravel(grad[name])
            first_step = not np.any(slot["ms"])
            for i in range(4):
                d = slot["inp"] ** (1 / 2**i)
                s = 0 if first_step else slot["scl"]
                slot["accum"][i] = (1 - d) * g + d * slot["accum"][i]
                square = slot["accum"][i] ** 2 + 1e-12
                slot["ms"][i] = (1 - s) * square + s * slot["ms"][i]
            scaled = np.arcsinh(slot["accum"] / np.sqrt(slot["ms"] + 1e-16))
            logs = np.log(slot["ms"] + 1e-16)
            bias = theta["bias"]
            above = _slow_linear(bias["tensor_to_coordinate"], slot["tensor"])
            above = above + _slow_linear(bias["problem_to_coordinate"], problem)
            seen, delta = [], []
            for j in range(g.size):
                x = [*scaled[:, j], *(scaled[:-1, j] * scaled[1:, j])]
                x += [*(logs[:, j] - np.mean(logs[:, j])), log_lr[name][j] - mean_lr]
                h = _slow_gru(theta["coordinate"], x, slot["h"][j], above)
                slot["h"][j] = h
                seen.append(np.concatenate([h, x]))
                raw = h @ theta["direction"] + scaled[:, j] @ theta["shortcut"]
                delta.append(raw[0])
                slot["scl"][j] = _sigmoid(_slow_linear(theta["scale_decay"], h))[0]
                slot["inp"][j] = _sigmoid(_slow_linear(theta["input_decay"], h))[0]
            above = _slow_linear(bias["problem_to_tensor"], problem)
            slot["tensor"] = _slow_gru(
                theta["tensor"], np.mean(seen, 0), slot["tensor"], above
            )
            rate = [_slow_linear(theta["log_lr"], h)[0] for h in slot["h"]]
            rate = np.clip(log_lr[name] + np.array(rate), -33, 33)
            keep = _sigmoid(theta["log_lr_momentum"])
            log_lr[name] = keep * log_lr[name] + (1 - keep) * rate
            delta /= np.sqrt(np.mean(np.square(delta)) + 1e-16)
            updates[name] = -np.exp(rate + theta["log_lr_offset"]) * delta
        tensors = [slot["tensor"] for slot in slots.values()]
        below = tensors[-1] if global_input == "last_tensor" else np.mean(tensors, 0)
        problem = _slow_gru(theta["problem"], below, problem)
        yield updates, log_lr, problem


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"global_input": "last_tensor"},
        {
            "level_sizes": (3, 5, 4),
            "min_learning_rate": 1e-4,
            "max_learning_rate": 1e-1,
            "seed": 2,
        },
    ],
    ids=["default", "last_tensor", "small"],
)
def test_l2o_scale_equals_its_slow_form(arguments):
    optimizer = l2o.l2o_scale(**arguments)
    theta, params, grads = _problem(optimizer)
    first, path = _run(optimizer, theta, params, grads)
    slow = _slow_l2o_scale(
        *_wide((theta, first, grads)), optimizer.arguments["global_input"]
    )
    for (updates, state), (expected, log_lr, problem) in zip(path, slow, strict=True):
        for name in SHAPES:
            _assert_close(updates[name], expected[name], 3e-5, name)
            _assert_close(state.log_lr[name], log_lr[name])
        _assert_close(state.problem, problem)


def test_global_level_sees_all_tensors_or_the_last():
    rng = np.random.default_rng(0)
    grads = {k: np.float32(rng.standard_normal(s)) for k, s in SHAPES.items()}
    other = {**grads, "matrix": 2 + grads["matrix"] ** 2}
    for global_input, same in (("mean", False), ("last_tensor", True)):
        optimizer = l2o.l2o_scale(global_input=global_input)
        theta = optimizer.init_theta(jax.random.key(0))
        problems = [
            _run(optimizer, theta, grads, [g])[1][0][1].problem for g in (grads, other)
        ]
        assert np.array_equal(*problems) == same


def test_initial_rates_of_l2o_scale():
    optimizer = l2o.l2o_scale()
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = {f"w{i:02}": jnp.ones(300) for i in range(60)}
    log_lr = np.stack(jax.tree.leaves(tx.init(params).log_lr))
    low, high = np.log(1e-6), np.log(1e-2)
    assert low <= log_lr.min() < low + 0.5 and high - 0.5 < log_lr.max() <= high
    half = (high - low) / 2
    spread = np.ptp(log_lr, axis=1)
    assert 0.95 * half < spread.min() and spread.max() <= half
    # Uniform over half of the range, within a tensor and between tensors.
    deviation = half / np.sqrt(12)
    np.testing.assert_allclose(np.std(log_lr, axis=1), deviation, rtol=0.1)
    np.testing.assert_allclose(np.std(np.mean(log_lr, 1)), deviation, rtol=0.25)


def test_log_rate_is_clipped_in_value_but_not_in_gradient():
    optimizer = l2o.l2o_scale()
    theta = optimizer.init_theta(jax.random.key(0))
    params = jnp.ones(3)

    def update(bias):
        learned = {**theta, "log_lr": {"w": jnp.zeros((10, 1)), "b": bias}}
        return _run(optimizer, learned, params, [params])[1][0][0]

    bias = jnp.float32([100])
    assert np.sqrt(np.mean(update(bias) ** 2)) == pytest.approx(np.exp(32), rel=1e-5)
    gradient = jax.jacobian(update)(bias)[:, 0]
    np.testing.assert_allclose(gradient, update(bias), rtol=1e-5)


def _slow_l2o_pa(arguments, theta, problem, x, hidden, cell):
    """Yields x and z of every step; `problem` gives the gradient; coordinates in a row.

    `hidden` and `cell` have a list of layers for every coordinate.
    """
    norm = {
        "eye": lambda u: u,
        "exp": np.exp,
        "sigmoid": lambda u: 2 * _sigmoid(u),
        "softplus": lambda u: np.log1p(np.exp(u)),
    }
    off = {"p": 1, "a": 0, "b": 1, "b1": 0, "b2": 0}
    s = 0.9999 / arguments["lipschitz"]
    z = x
    while True:
        grad, z_grad = problem(x), problem(z)
        new_x, new_z = np.zeros_like(x), np.zeros_like(x)
        for j in range(len(x)):
            out = _slow_stack(
                theta,
                arguments["hidden_layers"],
                [grad[j], x[j]],
                hidden[j],
                cell[j],
                0,
            )
            out = np.maximum(_slow_linear(theta["linear"], out), 0)
            c = {}
            for name, value in off.items():
                if (control := arguments[name]) is None:
                    c[name] = value
                    continue
                by = "b" if arguments["b_norm_for_all"] and "b" in name else name
                head = _slow_linear(theta["heads"][name], out)[0]
                c[name] = norm[arguments[by][0]](head) * control[1]
            u = c["b"] * (x[j] - c["p"] * s * grad[j]) + c["b1"]
            u += (1 - c["b"]) * (z[j] - c["p"] * s * z_grad[j])
            if arguments["prox"] == "l1":
                shrink = arguments["rho"] * c["p"] * s
                u = np.sign(u) * max(abs(u) - shrink, 0)
            new_z[j] = u
            new_x[j] = u + c["a"] * (u - z[j]) + c["b2"]
        x, z = new_x, new_z
        yield x, z


def _least_squares():
    """A small LASSO: matrix, target, Lipschitz constant, weight of the l1 norm."""
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((6, 9)) / 3
    solution = np.where(np.arange(9) % 3, 0, 2 + rng.standard_normal(9))
    return matrix, matrix @ solution, np.linalg.norm(matrix, 2) ** 2, 0.05


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"p": None, "a": ("softplus", 0.3)},
        {"p": ("softplus", 2), "a": None, "hidden_layers": 1, "hidden_size": 3},
        ALL_ON,
        {**ALL_ON, "b_norm_for_all": True, "seed": 1, "state_scale": 0.1},
        {**ALL_ON, "prox": "none"},
        {**ALL_ON, "b": None},
    ],
    ids=["pa", "a", "p", "all", "b_norm_for_all", "no_prox", "no_b"],
)
def test_l2o_pa_equals_its_slow_form(arguments):
    matrix, target, lipschitz, rho = _least_squares()
    defaults = {"prox": "l1", "rho": rho, "lipschitz": float(lipschitz)}
    optimizer = l2o.l2o_pa(**{**defaults, **arguments})
    theta = _problem(optimizer)[0]
    step = jax.jit(
        lambda params, state: optimizer.bind(theta).update(
            gradient(params), state, params, grad_fn=gradient
        )
    )

    def slow_gradient(x):
        return matrix.T @ (matrix @ x - target)

    def gradient(x):
        x = jnp.append(x["vector"], x["scalar"])
        gradient = matrix.T @ (matrix @ x - target)
        return {"vector": gradient[:8].reshape(4, 2), "scalar": gradient[8]}

    # The tree has the scalar first; the problem has it last.
    x = np.float32(np.random.default_rng(2).standard_normal(9))
    params = {"vector": x[:8].reshape(4, 2), "scalar": x[8]}
    state = optimizer.bind(theta).init(params)
    coordinates = [
        *(_states_of_coordinate(state.lstm, "vector", i) for i in range(8)),
        _states_of_coordinate(state.lstm, "scalar", 0),
    ]
    hidden, cell = zip(*coordinates)
    slow = _slow_l2o_pa(
        optimizer.arguments, _wide(theta), slow_gradient, np.float64(x), hidden, cell
    )
    for _ in range(4):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        for tree, expected in zip((params, state.z), next(slow)):
            _assert_close(tree["vector"], expected[:8])
            assert tree["scalar"] == pytest.approx(expected[8], rel=1e-4, abs=1e-5)


def _objective(x):
    matrix, target, _, rho = _least_squares()
    residual = matrix @ np.float64(x) - target
    return residual @ residual / 2 + rho * np.sum(np.abs(np.float64(x)))


def _fista(momenta):
    """Objectives of FISTA with the given momenta, in float64; ISTA where all are 0."""
    matrix, target, lipschitz, rho = _least_squares()
    s = 0.9999 / lipschitz
    x = y = np.zeros(9)
    for momentum in momenta:
        u = y - s * matrix.T @ (matrix @ y - target)
        old, x = x, np.sign(u) * np.maximum(np.abs(u) - rho * s, 0)
        y = x + momentum * (x - old)
        yield _objective(x)


def _nesterov(steps):
    tau = 1.0
    for _ in range(steps):
        old, tau = tau, (1 + np.sqrt(1 + 4 * tau**2)) / 2
        yield float((old - 1) / tau)


@pytest.mark.parametrize(
    ("controls", "momenta"),
    [
        ({"p": None, "a": None}, [0] * 30),
        ({"p": ("sigmoid", 1.0), "a": None, "b": ("sigmoid", 1.0)}, [0] * 30),
        ({"p": ("sigmoid", 1.0)}, [0.4] * 30),
        ({"p": None}, list(_nesterov(30))),
    ],
    ids=["ista-off", "ista-zero_heads", "constant", "fista"],
)
def test_l2o_pa_is_ista_and_fista_where_its_controls_are_constant(controls, momenta):
    matrix, target, lipschitz, rho = _least_squares()

    def gradient(x):
        return jnp.asarray(matrix.T @ (matrix @ np.float64(x) - target), jnp.float32)

    params = jnp.zeros(9)
    state, objectives = None, []
    for momentum in momenta:
        # A head of zeros gives 2 sigmoid(0) = 1 times the factor.
        a = {} if "a" in controls else {"a": ("sigmoid", momentum)}
        optimizer = l2o.l2o_pa(prox="l1", rho=rho, **controls, **a)
        theta = optimizer.init_theta(jax.random.key(0))
        theta["heads"] = optax.tree.zeros_like(theta["heads"])
        tx = optimizer.bind(theta)
        state = tx.init(params) if state is None else state
        updates, state = tx.update(
            gradient(params), state, params, grad_fn=gradient, lipschitz=lipschitz
        )
        params = optax.apply_updates(params, updates)
        objectives.append(_objective(state.z))
    expected = list(_fista(momenta))
    assert expected[-1] < 0.6 * expected[0]
    np.testing.assert_allclose(objectives, expected, rtol=1e-5)


def test_l2o_pa_gets_the_lipschitz_constant_of_each_problem():
    optimizer = l2o.l2o_pa(lipschitz=4.0, state_scale=0.0)
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = jnp.ones(3)

    def update(**extra):
        return tx.update(params, tx.init(params), params, **extra)[0]

    _assert_close(update(lipschitz=2.0), 2 * update())
    many = jax.vmap(lambda c: update(lipschitz=c))(jnp.float32([4, 1]))
    _assert_close(many, np.stack([update(), 4 * update()]))


def test_l2o_pa_with_b_names_the_gradient_it_lacks():
    optimizer = l2o.l2o_pa(b=("sigmoid", 1.0))
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = jnp.ones(3)
    with pytest.raises(ValueError, match=r"tx\.update\(.*grad_fn=grad_fn\)"):
        tx.update(params, tx.init(params), params)


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


def test_network_of_l2o_pa_sees_constants():
    """The meta-gradient goes through the step, not through the network's inputs."""
    optimizer = l2o.l2o_pa()
    theta = optimizer.init_theta(jax.random.key(0))
    tx = optimizer.bind(theta)
    params, grads = jnp.ones(3), jnp.full(3, 2.0)
    state = tx.init(params)

    def update(x, g):
        return tx.update(g, state, x)[0]

    by_x, by_g = jax.jacobian(update, (0, 1))(params, grads)
    # x' - x = (1 + A) (x - P s g) - A z - x.
    a = np.diag(by_x)
    p = -np.diag(by_g) / (1 + a) / 0.9999
    expected = (1 + a) * (params - p * 0.9999 * grads) - a * params - params
    _assert_close(update(params, grads), expected)
