"""L2O-PA against a slow NumPy version, and where it is ISTA or FISTA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_open_l2o import (
    assert_close,
    random_problem,
    sigmoid,
    slow_linear,
    slow_stack,
    states_of_coordinate,
    wide,
)

import l2o

ALL_ON = {
    "p": ("softplus", 0.7),
    "a": ("exp", 0.3),
    "b": ("sigmoid", 0.9),
    "b1": ("eye", 0.1),
    "b2": ("softplus", 0.2),
}


def _slow_l2o_pa(arguments, theta, problem, x, hidden, cell):
    """Yields x and z of every step; `problem` gives the gradient; coordinates in a row.

    `hidden` and `cell` have a list of layers for every coordinate.
    """
    norm = {
        "eye": lambda u: u,
        "exp": np.exp,
        "sigmoid": lambda u: 2 * sigmoid(u),
        "softplus": lambda u: np.log1p(np.exp(u)),
    }
    off = {"p": 1, "a": 0, "b": 1, "b1": 0, "b2": 0}
    s = 0.9999 / arguments["lipschitz"]
    z = x
    while True:
        grad, z_grad = problem(x), problem(z)
        new_x, new_z = np.zeros_like(x), np.zeros_like(x)
        for j in range(len(x)):
            out = slow_stack(
                theta,
                arguments["hidden_layers"],
                [grad[j], x[j]],
                hidden[j],
                cell[j],
                0,
            )
            out = np.maximum(slow_linear(theta["linear"], out), 0)
            c = {}
            for name, value in off.items():
                if (control := arguments[name]) is None:
                    c[name] = value
                    continue
                by = "b" if arguments["b_norm_for_all"] and "b" in name else name
                head = slow_linear(theta["heads"][name], out)[0]
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
    theta = random_problem(optimizer)[0]
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
        *(states_of_coordinate(state.lstm, "vector", i) for i in range(8)),
        states_of_coordinate(state.lstm, "scalar", 0),
    ]
    hidden, cell = zip(*coordinates)
    slow = _slow_l2o_pa(
        optimizer.arguments, wide(theta), slow_gradient, np.float64(x), hidden, cell
    )
    for _ in range(4):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        for tree, expected in zip((params, state.z), next(slow)):
            assert_close(tree["vector"], expected[:8])
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

    assert_close(update(lipschitz=2.0), 2 * update())
    many = jax.vmap(lambda c: update(lipschitz=c))(jnp.float32([4, 1]))
    assert_close(many, np.stack([update(), 4 * update()]))


def test_l2o_pa_with_b_names_the_gradient_it_lacks():
    optimizer = l2o.l2o_pa(b=("sigmoid", 1.0))
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = jnp.ones(3)
    with pytest.raises(ValueError, match=r"tx\.update\(.*grad_fn=grad_fn\)"):
        tx.update(params, tx.init(params), params)


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
    assert_close(update(params, grads), expected)
