"""The smallest losses of classical problems against numpy, scipy, scikit-learn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from classical_forms import (
    FORMULAS,
    FUNCTIONS,
    PI,
    SPECS,
    UNBOUNDED,
    flower_rows,
    snake,
    wide,
)
from helpers import ERRORS, KEY, KEYS, assert_close, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import TaskSpec

pytestmark = pytest.mark.usefixtures("compiled_as_it_stands")


def test_no_loss_is_below_the_optimum(runs):
    unknown = {name for name, out in runs.items() if out["optimum"] is None}
    assert unknown == {
        *UNBOUNDED,
        *("zoo_rastrigin", "many_rastrigins", "sparse_coding", "patches"),
    }
    noisy = {name for name in SPECS if "batch_size" in SPECS[name].options}
    for name in set(SPECS) - unknown - noisy - {"uniform", "noisy_mean"}:
        out = runs[name]
        optimum = np.asarray(out["optimum"])
        assert optimum.shape == (16,)
        slack = 1e-6 + 1e-5 * abs(optimum)
        assert np.all(out["loss"] >= optimum - slack), name
        assert np.all(out["start_loss"] >= optimum - slack), name


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("uniform", lambda config: config["minimum"]),
        ("noisy_mean", lambda config: jnp.zeros(2)),
        (
            "batches",
            lambda config: jnp.linalg.lstsq(config["matrix"], config["target"])[0],
        ),
        ("projection", lambda config: jnp.zeros(5)),
        ("sum", lambda config: jnp.zeros(5)),
    ],
)
def test_optimum_is_the_mean_over_batches_at_the_minimum(run, name, best):
    family, config = run.families[name], run.out[name]["config"]
    task = family.task(config, family.data)

    def at(x):
        losses = mapped(lambda key: task.loss(x, (), key, task.batch(key, "train"))[0])
        return np.asarray(losses(KEYS))

    losses = at(best(config))
    error = losses.std() / math.sqrt(len(losses)) + 1e-6
    assert abs(losses.mean() - run.out[name]["optimum"]) < ERRORS * error
    # And a little beside it the loss is larger, for the same batches.
    assert at(best(config) + 0.3).mean() > losses.mean()


def test_least_squares_optimum_equals_numpys():
    for condition in (1, 3):
        family = tasks.least_squares(30, 6, log10_condition=condition)
        config = jax.jit(family.sample)(KEY)
        matrix, target = wide(config["matrix"]), wide(config["target"])
        values = np.linalg.svd(matrix, compute_uv=False) / math.sqrt(30)
        np.testing.assert_allclose(values, np.logspace(0, -condition, 6), rtol=1e-3)
        best = np.linalg.lstsq(matrix, target)[1][0] / 60
        np.testing.assert_allclose(family.optimum(config, ()), best, rtol=1e-4)


def _sklearn_lasso(matrix, target, rho):
    from sklearn.linear_model import Lasso

    model = Lasso(rho / len(target), fit_intercept=False, tol=1e-10, max_iter=10**6)
    x = model.fit(wide(matrix), wide(target)).coef_
    residual = wide(matrix) @ x - wide(target)
    return 0.5 * residual @ residual + rho * np.sum(abs(x))


def test_lasso_optimum_equals_scikit_learns(run):
    for name, rho in (("lasso", 0.1), ("lasso_smooth", 0.1), ("zoo_lasso", 1.0)):
        config = run.out[name]["config"]
        best = _sklearn_lasso(config["matrix"], config["target"], rho)
        np.testing.assert_allclose(run.out[name]["optimum"], best, rtol=1e-5)
    config = run.out["many_lassos"]["config"]
    best = [_sklearn_lasso(*one, 0.005) for one in zip(*config.values())]
    found = run.out["many_lassos"]["optimum"]
    np.testing.assert_allclose(found, np.mean(best), rtol=1e-4)


@pytest.mark.parametrize("name", ["logistic", "flowers", "logistic_batches"])
def test_logistic_optimum_equals_scipys(run, name):
    config = run.out[name]["config"]
    rows = flower_rows(run, name) if name == "flowers" else wide(dict(config))
    rho = float(config["rho"])
    dim = rows["features"].shape[1]

    # x = u - v with u, v >= 0 makes the 1-norm smooth.
    def function(uv):
        x = uv[:dim] - uv[dim:]
        logits = rows["features"] @ x
        residual = 1 / (1 + np.exp(-logits)) - rows["labels"]
        slope = rows["features"].T @ residual / len(logits)
        value = np.mean(np.logaddexp(0, logits) - rows["labels"] * logits)
        gradient = np.concatenate([slope, -slope]) + rho
        return value + rho * uv.sum(), gradient

    best = scipy.optimize.minimize(
        function,
        np.zeros(2 * dim),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * dim),
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10**4},
    ).fun
    np.testing.assert_allclose(run.out[name]["optimum"], best, rtol=1e-5)


def _lowest(function, starts):
    """Of Nelder and Mead's method from the best quarter of the starts."""
    starts = sorted(starts, key=function)[: len(starts) // 4]
    options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 2000}
    return min(
        scipy.optimize.minimize(function, x, method="Nelder-Mead", options=options).fun
        for x in starts
    )


@pytest.mark.parametrize(
    "name", sorted(set(FUNCTIONS) - {"saddle", "dependency_chain", "min_max_well"})
)
def test_landscape_optimum_equals_the_lowest_point_that_scipy_finds(run, name):
    starts = scipy.stats.qmc.scale(
        scipy.stats.qmc.Sobol(2, rng=0).random(64),
        *((-5, 0), (10, 15)) if name == "branin" else ([-3.5] * 2, [3.5] * 2),
    )
    if name == "michalewicz":
        starts = abs(starts)
    optimum = float(run.families[name].optimum({}, ()))
    lowest = _lowest(FUNCTIONS[name], starts)
    if name == "michalewicz":
        # The published function's minimum in its box is not that of the plane.
        np.testing.assert_allclose(lowest, 0.19337711465, atol=1e-6)
        lowest = FUNCTIONS[name](np.array([39.30130652, 26.70353756]))
        assert optimum == 0 < lowest < 1e-3
    else:
        np.testing.assert_allclose(lowest, optimum, atol=1e-6)


def test_landscape_optima_in_more_dimensions():
    points = {
        ("rosenbrock", 5): 1.0,
        ("rastrigin", 7): 0.0,
        ("ackley", 3): 0.0,
        ("styblinski_tang", 4): -2.9035340,
        ("dependency_chain", 6): 0.0,
        ("min_max_well", 6): 1.0,
    }
    for (name, dim), point in points.items():
        family = tasks.landscape(name, dim)
        task = family.task({}, ())
        x = jnp.full(dim, point)
        value_and_grad = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
        (loss, _), gradient = value_and_grad(x, (), KEY, ())
        np.testing.assert_allclose(loss, family.optimum({}, ()), atol=2e-5)
        assert np.all(np.isfinite(gradient)), name


def test_norm_and_matmul_have_their_optima_at_known_solutions(run):
    config = wide(run.out["norm"]["config"])
    x = np.linalg.solve(config["matrix"], config["target"])
    optimum = run.out["norm"]["optimum"]
    np.testing.assert_allclose(FORMULAS["norm"](config, x, ()), optimum, rtol=1e-5)
    # Strassen's algorithm; rows are a11, a12, a21, a22.
    a = [[1, 0, 1, 0, 1, -1, 0], [0, 0, 0, 0, 1, 0, 1]]
    a += [[0, 1, 0, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, -1]]
    b = [[1, 1, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0]]
    b += [[0, 0, 0, 1, 0, 0, 1], [1, 0, -1, 0, 1, 0, 1]]
    strassen = {"a": jnp.array(a, jnp.float32), "b": jnp.array(b, jnp.float32)}
    task = run.families["matmul"].task({}, ())
    assert task.loss(strassen, (), KEY, ())[0] < 1e-9
    assert run.families["matmul"].optimum({}, ()) == 0
    assert tasks.matmul_algorithm(2, 6).optimum is None
    assert tasks.matmul_algorithm(3, 22).optimum is None


def test_the_snake_leads_to_infinity_and_michalewicz_out_of_its_box(run):
    path = [1e6]
    for _ in range(4):
        path.append(PI * math.cos(path[-1]))
    out = wide(run.out["snake"])
    assert snake(out["config"], np.array(path), out["batch"]) < 1e-5


def test_quadratics_with_as_many_rows_as_columns_reach_zero_and_others_do_not():
    for rows in (4, 9):
        family = tasks.open_l2o("quadratic", 4, rows=rows, instances=3)
        config = jax.jit(family.sample)(KEY)
        pairs = zip(wide(config["matrix"]), wide(config["target"]))
        left = [np.linalg.lstsq(w, y) for w, y in pairs]
        best = np.mean([r[1][0] if len(r[1]) else 0.0 for r in left])
        np.testing.assert_allclose(family.optimum(config, ()), best, rtol=1e-4)


def test_ista_and_fista_equal_their_slow_forms(run):
    config = run.out["lasso"]["config"]
    problem = tasks.lasso_problem(**config)
    matrix, target = wide(config["matrix"]), wide(config["target"])
    step = 1 / np.linalg.norm(matrix, 2) ** 2
    np.testing.assert_allclose(problem.lipschitz, 1 / step, rtol=1e-5)
    assert_close(problem.prox(jnp.array([-2.0, 0.05, 1.0]), 2.0), [-1.8, 0, 0.8])

    def descend(x):
        u = x - step * matrix.T @ (matrix @ x - target)
        return np.sign(u) * np.maximum(abs(u) - 0.1 * step, 0)

    x = z = y = np.zeros(40)
    t = 1.0
    for _ in range(30):
        x = descend(x)
        new_z, new_t = descend(y), (1 + math.sqrt(1 + 4 * t**2)) / 2
        y, z, t = new_z + (t - 1) / new_t * (new_z - z), new_z, new_t

    @jax.jit
    def both(steps):
        arguments = (problem.prox, problem.lipschitz, jnp.zeros(40), steps)
        gradient = jax.grad(problem.smooth)
        return tasks.ista(gradient, *arguments), tasks.fista(gradient, *arguments)

    assert_close(both(30), (x, z), rtol=1e-3, atol=1e-5)


def _ista_transformation(lipschitz, rho):
    def update(updates, state, params, **extra):
        new = tasks.prox_l1(params - updates / lipschitz, rho / lipschitz)
        return new - params, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


@pytest.mark.parametrize(("name", "steps"), [("lasso_smooth", 6000), ("flowers", 6000)])
def test_ista_as_an_inner_optimizer_needs_the_smooth_gradient(run, name, steps):
    data = run.families[name].data
    config = run.out[name]["config"]
    if name == "flowers":
        rows = flower_rows(run, name)
        problem = tasks.logistic_problem(**rows, rho=config["rho"])
    else:
        problem = tasks.lasso_problem(**config)
    tx = _ista_transformation(float(problem.lipschitz), float(config["rho"]))

    def final(gradient):
        family = TaskSpec(
            SPECS[name].kind, {**SPECS[name].options, "gradient": gradient}
        ).family()

        @jax.jit
        def train(config, data):
            task = family.task(config, data)
            state = inner_init(tx, task, KEY)
            return unroll(tx, task, state, KEY, jnp.arange(steps))

        state, losses = train(config, data)
        return state.params, losses[-1]

    optimum = run.out[name]["optimum"]
    x, loss = final("smooth")
    np.testing.assert_allclose(loss, optimum, rtol=1e-4)
    np.testing.assert_allclose(loss, problem.value(x), rtol=1e-5)  # F, not f
    assert tasks.relative_error(final("full")[1], optimum) > 3e-3


def test_lipschitz_constants_bound_the_curvature():
    family = tasks.logistic_regression()
    config = jax.jit(family.sample)(KEY)
    features = wide(config["features"])
    norm = np.linalg.norm(features, 2)
    problem = tasks.logistic_problem(**config)
    np.testing.assert_allclose(problem.lipschitz, norm**2 / 4000, rtol=1e-4)
    # At 0, where p (1 - p) is 1/4, the bound is the curvature itself.
    hessian = jax.jit(jax.hessian(problem.smooth))(jnp.zeros(50))
    largest = np.linalg.eigvalsh(wide(hessian))[-1]
    np.testing.assert_allclose(problem.lipschitz, largest, rtol=1e-3)
    published = tasks.logistic_problem(**config, published_lipschitz=True)
    np.testing.assert_allclose(published.lipschitz, norm, rtol=1e-4)
