"""Classical and convex families against numpy, scipy and scikit-learn."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from helpers import ERRORS, KEY, KEYS, assert_close, assert_log_uniform, differ, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import TaskSpec
from l2o.tasks.families._lasso import sparse_vector
from l2o.tasks.families._variants import above_floor

PI, EPS = math.pi, 1e-6
FLOWERS = {"dataset": "iris", "rho": 0.01}


def _spec(kind, **options):
    return TaskSpec(kind, options)


SPECS = {
    "uniform": _spec("quadratic", dim=4, spectrum="uniform", noise=0.3),
    "clusters": _spec("quadratic", dim=5, spectrum="two_clusters", rotated=True),
    "power": _spec("quadratic", dim=4, spectrum="power_law", rotated=True),
    "spike": _spec("quadratic", dim=4, spectrum="single_spike", log10_condition=2),
    "least_squares": _spec("least_squares", rows=12, dim=4),
    "batches": _spec("least_squares", rows=12, dim=4, batch_size=5),
    "noisy_quadratic": _spec("noisy_quadratic", dim=3, scale=5.0),
    "noisy_mean": _spec("noisy_mean", noise=0.5),
    "log_quadratic": _spec("log_quadratic", dim=3),
    "lasso": _spec("lasso", rows=20, dim=40, nonzeros=5),
    "lasso_smooth": _spec("lasso", rows=20, dim=40, nonzeros=5, gradient="smooth"),
    "logistic": _spec("logistic_regression", rows=60, dim=5, nonzeros=3),
    "logistic_batches": _spec(
        "logistic_regression", rows=60, dim=5, nonzeros=3, batch_size=9
    ),
    "flowers": _spec("logistic_regression", **FLOWERS),
    "flowers_smooth": _spec(
        "logistic_regression", **FLOWERS, gradient="smooth", batch_size=10
    ),
    **{name: _spec("landscape", name=name) for name in tasks.LANDSCAPES},
    "rosenbrock4": _spec("landscape", name="rosenbrock", dim=4),
    "rescaled": _spec("landscape", name="branin", rescale=10.0),
    "logarithmic": _spec("landscape", name="bowl5", log=True, rescale=10.0),
    "sparse": _spec("landscape", name="rastrigin", dim=8, sparse=0.5),
    "zoo_quadratic": _spec("l2o_scale", dim=5),
    "zoo_lasso": _spec("l2o_scale", name="lasso", dim=5),
    "zoo_rastrigin": _spec("l2o_scale", name="rastrigin", dim=5),
    "norm": _spec("l2o_scale", name="norm", dim=5, power=3.0),
    "snake": _spec("l2o_scale", name="outward_snake", dim=5, batch_size=9),
    "projection": _spec("l2o_scale", name="projection_quadratic", dim=5, batch_size=9),
    "sum": _spec("l2o_scale", name="sum_of_quadratics", dim=5, batch_size=9),
    "many_quadratics": _spec("open_l2o", instances=3, dim=4),
    "many_lassos": _spec("open_l2o", name="lasso", instances=3, dim=4, rows=2),
    "many_rastrigins": _spec("open_l2o", name="rastrigin", instances=3, dim=2),
    "matmul": _spec("matmul_algorithm"),
    "sparse_coding": _spec(
        "sparse_coding", dataset=None, atoms=8, batch_size=4, pixels=6, nonzeros=2
    ),
    "patches": _spec("sparse_coding", atoms=70, batch_size=4),
}


# --- the losses once more, in float64


def _quadratic(config, x, shift):
    distance = x - config["minimum"] - shift
    return 0.5 * np.sum(
        config["curvature"] * (config.get("basis", np.eye(len(x))).T @ distance) ** 2
    )


def _least_squares(config, x, batch):
    rows = len(batch["target"])
    return np.sum((batch["matrix"] @ x - batch["target"]) ** 2) / (2 * rows)


def _lasso(config, x, batch, rho=0.1):
    residual = config["matrix"] @ x - config["target"]
    return 0.5 * residual @ residual + rho * np.sum(abs(x))


def _logistic(config, x, batch, rho=0.1):
    p = 1 / (1 + np.exp(-batch["features"] @ x))
    likelihood = np.where(batch["labels"] == 1, p, 1 - p)
    return -np.mean(np.log(likelihood)) + rho * np.sum(abs(x))


def _rastrigin(x):
    return np.sum(x**2 - 10 * np.cos(2 * PI * x)) + 10 * len(x)


def _rosenbrock(x):
    return sum((1 - a) ** 2 + 100 * (b - a**2) ** 2 for a, b in itertools.pairwise(x))


def _branin(p):
    a = p[1] - 5.1 / (4 * PI**2) * p[0] ** 2 + 5 / PI * p[0] - 6
    return a**2 + 10 * (1 - 1 / (8 * PI)) * np.cos(p[0]) + 10


def _bowl(condition, angle):
    rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = np.diag([math.sqrt(condition), 1]) @ rotation
    return lambda x: 0.5 * np.sum((matrix @ x) ** 2)


# As published, for two coordinates.
FUNCTIONS = {
    "rosenbrock": _rosenbrock,
    "rastrigin": _rastrigin,
    "ackley": lambda x: (
        -20 * np.exp(-0.2 * np.sqrt(0.5 * np.sum(x**2)))
        - np.exp(0.5 * np.sum(np.cos(2 * PI * x)))
        + np.exp(1)
        + 20
    ),
    "beale": lambda p: (
        (1.5 - p[0] + p[0] * p[1]) ** 2
        + (2.25 - p[0] + p[0] * p[1] ** 2) ** 2
        + (2.625 - p[0] + p[0] * p[1] ** 3) ** 2
    ),
    "booth": lambda p: (p[0] + 2 * p[1] - 7) ** 2 + (2 * p[0] + p[1] - 5) ** 2,
    "styblinski_tang": lambda x: 0.5 * np.sum(x**4 - 16 * x**2 + 5 * x) + 80,
    "matyas": lambda p: 0.26 * (p[0] ** 2 + p[1] ** 2) - 0.48 * p[0] * p[1],
    "branin": _branin,
    "michalewicz": lambda p: (
        2
        - np.sin(p[0]) * np.sin(p[0] ** 2 / PI) ** 10
        - np.sin(p[1]) * np.sin(2 * p[1] ** 2 / PI) ** 10
    ),
    "log_sum_exp": lambda p: np.log(
        np.exp(p[0] + 3 * p[1] - 0.1)
        + np.exp(p[0] - 3 * p[1] - 0.1)
        + np.exp(-p[0] - 0.1)
        + 1
    ),
    "saddle": lambda p: p[0] ** 2 - p[1] ** 2,
    "bowl0.1": _bowl(0.1, 0),
    "bowl1": _bowl(1, 0),
    "bowl5": _bowl(5, 0),
    "bowl5_rotated": _bowl(5, PI / 4),
    "dependency_chain": lambda x: sum(
        x[0] ** 2 + b**2 / (a**2 + EPS) for a, b in itertools.pairwise(x)
    ),
    "min_max_well": lambda x: max(x**2) + 1 / min(x**2) - 2,
}


def _residual(config, x):
    return config["matrix"] @ x - config["target"]


def _snake(config, x, d):
    bends = x[1:] - PI * np.cos(x[:-1])
    return sum(
        b[0] / (np.linalg.norm(x) + EPS) + np.sum((b[1:] * bends) ** 2) for b in d
    )


def _matmul(config, x, batch):
    units = [np.eye(4)[i].reshape(2, 2) for i in range(4)]
    inputs = [(i, j) for i in range(4) for j in range(4)]
    p = np.array([x["a"][i] * x["b"][j] for i, j in inputs])
    c = np.array([(units[i] @ units[j]).ravel() for i, j in inputs])
    return np.sum((p @ np.linalg.lstsq(p, c)[0] - c) ** 2)


def _sparse_coding(config, x, batch, signals=None):
    signals = config["signals"] if signals is None else signals
    d = x["dictionary"] / np.linalg.norm(x["dictionary"], axis=1, keepdims=True)
    square = 0.5 * np.sum((signals - x["codes"] @ d) ** 2)
    return (square + 0.5 * np.sum(abs(x["codes"]))) / len(signals)


def _patches(config, x, batch):
    images = np.float64(tasks.patches().train["x"]).reshape(-1, 64)
    images -= images.mean(1)[:, None]
    images /= images.std()
    return _sparse_coding(config, x, batch, images[np.int64(config["index"])])


def _each(loss):
    """The mean over instances."""

    def mean(config, x, batch):
        losses = [
            loss({name: value[i] for name, value in config.items()}, x[i], batch)
            for i in range(len(x))
        ]
        return np.mean(losses)

    return mean


def _of_x(function):
    return lambda config, x, batch: function(x)


FORMULAS = {
    **dict.fromkeys(("uniform", "clusters", "power", "spike"), _quadratic),
    **dict.fromkeys(("least_squares", "batches"), _least_squares),
    "noisy_quadratic": lambda config, p, n: np.sum(
        (config["scale"] * (config["minimum"] - p)) ** 2
    ),
    "noisy_mean": lambda config, p, n: (p - n) @ config["matrix"] @ (p - n),
    "log_quadratic": lambda config, p, n: np.log(np.sum((p - config["minimum"]) ** 2)),
    **dict.fromkeys(("lasso", "lasso_smooth"), _lasso),
    **dict.fromkeys(("logistic", "logistic_batches"), _logistic),
    **dict.fromkeys(
        ("flowers", "flowers_smooth"), lambda *args: _logistic(*args, rho=0.01)
    ),
    **{name: _of_x(function) for name, function in FUNCTIONS.items()},
    "rosenbrock4": _of_x(_rosenbrock),
    "rescaled": _of_x(lambda x: _branin(x / 10)),
    "logarithmic": _of_x(lambda x: np.log(_bowl(5, 0)(x / 10) / EPS + 1)),
    "sparse": _of_x(_rastrigin),
    "zoo_quadratic": lambda config, x, batch: 0.5 * np.sum(_residual(config, x) ** 2),
    "zoo_lasso": lambda config, x, batch: _lasso(config, x, batch, rho=1.0),
    "zoo_rastrigin": lambda config, x, batch: (
        np.mean(0.5 * _residual(config, x) ** 2)
        - 10 * config["waves"] @ np.cos(2 * PI * x)
        + 10 * len(x) ** 2
    ),
    "norm": lambda config, x, batch: (
        np.sum((abs(_residual(config, x)) + EPS) ** 3) ** (1 / 3)
    ),
    "snake": _snake,
    "projection": lambda config, x, d: sum(np.sum((x * row) ** 2) for row in d),
    "sum": lambda config, x, d: np.sum((x - d) ** 2) - np.sum(d**2),
    "many_quadratics": _each(
        lambda config, x, batch: np.sum(_residual(config, x) ** 2)
    ),
    "many_lassos": _each(lambda *args: _lasso(*args, rho=0.005)),
    "many_rastrigins": _each(
        lambda config, x, batch: (
            0.5 * np.sum(_residual(config, x) ** 2)
            - 10 * config["waves"] @ np.cos(2 * PI * x)
            + 20
        )
    ),
    "matmul": _matmul,
    "sparse_coding": _sparse_coding,
    "patches": _patches,
}
# Gradients of another function than the loss.
GRADIENTS = {
    "noisy_quadratic": lambda config, p, n: (
        FORMULAS["noisy_quadratic"](config, p, n) + n @ p
    ),
    "lasso_smooth": lambda *args: _lasso(*args, rho=0),
    "flowers_smooth": lambda *args: _logistic(*args, rho=0),
}
UNBOUNDED = ("saddle", "log_quadratic")


def _wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _central_differences(f, x, h=1e-5):
    """The gradient's first and last 40 coordinates."""
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)])

    def at(point):
        leaves, tree = jax.tree.flatten(x)
        parts = np.split(point, np.cumsum([leaf.size for leaf in leaves])[:-1])
        return f(tree.unflatten([p.reshape(y.shape) for p, y in zip(parts, leaves)]))

    steps = h * np.maximum(1, abs(flat))
    slopes = [
        (at(flat + s * e) - at(flat - s * e)) / (2 * s)
        for s, e in _ends(list(zip(steps, np.eye(len(flat)))))
    ]
    return np.array(slopes)


def _ends(x):
    return x if len(x) <= 80 else [*x[:40], *x[-40:]]


@pytest.fixture(scope="module", autouse=True)
def _compiled_as_it_stands():
    # A zoo that is compiled once and runs for milliseconds.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class _Run:
    """All problems in one program: drawn, evaluated off their starts, normalised."""

    def __init__(self):
        self.families = {name: spec.family() for name, spec in SPECS.items()}
        self.data = {name: family.data for name, family in self.families.items()}
        self.program = jax.jit(jax.vmap(self._all, (0, None)))
        self.many = self.program(KEYS[:16], self.data)
        self.out = jax.tree.map(lambda x: x[0], self.many)

    def _all(self, key, data):
        return {
            name: self._one(family, key, data[name])
            for name, family in self.families.items()
        }

    def _one(self, family, key, data):
        k_config, k_init, k_move, k_batch, k_loss = jax.random.split(key, 5)
        config = family.sample(k_config)
        task = family.task(config, data)
        start, state = task.init(k_init)
        assert state == ()
        batch = task.batch(k_batch, "train")
        flat, unravel = jax.flatten_util.ravel_pytree(start)
        # Off kinks and stationary points.
        x = unravel(flat + 0.3 * jax.random.normal(k_move, flat.shape))
        value_and_grad = jax.value_and_grad(
            lambda x: task.loss(x, (), k_loss, batch)[0]
        )
        loss, gradient = value_and_grad(x)
        optimum = None if family.optimum is None else family.optimum(config, data)
        extremes = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e30, -1e30])
        return {
            "config": config,
            "optimum": optimum,
            "start": start,
            "batch": batch,
            "x": x,
            "loss": loss,
            "gradient": gradient,
            "start_loss": task.loss(start, (), k_loss, batch)[0],
            "normalized": task.normalize(task.loss(start, (), k_loss, batch)[0]),
            "extremes": jax.vmap(task.normalize)(extremes),
        }


@pytest.fixture(scope="module")
def run():
    return _Run()


@pytest.fixture(scope="module")
def runs(run):
    return run.many


@pytest.mark.parametrize("name", SPECS)
def test_loss_and_gradient_equal_the_formula(run, name):
    out = run.out[name]
    config, x, batch = (_wide(out[part]) for part in ("config", "x", "batch"))
    loss = FORMULAS[name](config, x, batch)
    np.testing.assert_allclose(out["loss"], loss, rtol=2e-5, atol=1e-5)
    function = GRADIENTS.get(name, FORMULAS[name])
    expected = _central_differences(lambda x: function(config, x, batch), x)
    gradient = jax.flatten_util.ravel_pytree(out["gradient"])[0]
    gradient = np.asarray(_ends(np.asarray(gradient)))
    if name == "sparse":
        assert set(gradient == 0) == {True, False}
        expected[gradient == 0] = 0
    atol = 1e-4 * abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=atol)


def test_everything_that_is_drawn_follows_from_the_key(run, runs):
    reverse = run.program(KEYS[15::-1], run.data)
    for name, out in runs.items():
        for part in ("config", "start", "batch", "loss"):
            in_order = jax.tree.map(lambda x: x[::-1], reverse[name][part])
            assert_close(out[part], in_order, rtol=1e-4, atol=1e-4)
        losses = np.asarray(out["loss"])
        assert len(np.unique(losses)) > 12, name  # Michalewicz has plateaus


@pytest.mark.parametrize("name", ["clusters", "batches", "lasso_smooth", "sum"])
def test_vmap_over_configs_is_a_loop(run, runs, name):
    family = run.families[name]
    key, config = KEYS[3], jax.tree.map(lambda x: x[3], runs[name]["config"])
    assert_close(config, family.sample(jax.random.split(key, 5)[0]), 1e-4, 1e-5)
    task = family.task(config, family.data)
    x, batch = (jax.tree.map(lambda x: x[3], runs[name][k]) for k in ("x", "batch"))
    loss, gradient = jax.value_and_grad(lambda x: task.loss(x, (), key, batch)[0])(x)
    np.testing.assert_allclose(runs[name]["loss"][3], loss, rtol=1e-4)
    np.testing.assert_allclose(
        runs[name]["gradient"][3], gradient, rtol=1e-3, atol=1e-4
    )


def test_meta_losses_are_bounded_and_start_at_about_two(runs):
    for name, out in runs.items():
        if SPECS[name].kind == "quadratic":
            np.testing.assert_array_equal(out["normalized"], out["start_loss"])
            continue
        np.testing.assert_allclose(out["extremes"][:, [0, 1, 3]], 2.2, rtol=1e-6)
        np.testing.assert_allclose(out["extremes"][:, [2, 4]], 0, atol=1e-6)
        normalized = np.asarray(out["normalized"])
        assert np.all((normalized >= 0) & (normalized <= 2.2 + 1e-6))
        assert np.median(normalized) > 1.7, name


def test_above_floor_is_log_scaled_from_the_floor_up():
    losses = jnp.array([-1.0, 3.0, 3.0 + 4.0 / math.e, 7.0, 7e9])
    assert_close(above_floor(3.0, 4.0)(losses), [0, 0, 1.8, 2, 2.2])
    losses = jnp.array([-1e9, -2 * math.sinh(5), 0.0, 2 * math.sinh(0.5)])
    assert_close(above_floor(None, 2.0)(losses), [0, 1, 2, 2.1])


@pytest.mark.parametrize("name", SPECS)
def test_specs_survive_json(run, name):
    spec = SPECS[name]
    again = TaskSpec.from_json(spec.to_json())
    assert again == spec and again.digest() == spec.digest()
    assert again.family().name == run.families[name].name
    names = [family.name for family in run.families.values()]
    assert len(set(names)) >= len(names) - 5  # gradient and batch are not in them


def test_backpropagation_through_adam_has_finite_gradients(run):
    tx = lambda rate: optax.with_extra_args_support(optax.adam(rate))

    @jax.jit
    @jax.grad
    def slope(rate, config, data):
        task = run.families["sparse_coding"].task(config, data)
        state = inner_init(tx(rate), task, KEY)
        return unroll(tx(rate), task, state, KEY, jnp.arange(3))[1][-1]

    # At a gradient of 0, such as without codes, it would be NaN.
    assert slope(0.01, run.out["sparse_coding"]["config"], ()) < 0


@pytest.mark.exhaustive  # losses and gradients equal the formulas
def test_adam_descends_on_every_problem(run):
    tx = optax.with_extra_args_support(optax.adam(0.03))

    @jax.jit
    def train(configs, data):
        losses = {}
        for name, family in run.families.items():
            task = family.task(configs[name], data[name])
            state = inner_init(tx, task, KEY)
            _, losses[name] = unroll(tx, task, state, KEY, jnp.arange(300))
        return losses

    configs = {name: out["config"] for name, out in run.out.items()}
    for name, losses in train(configs, run.data).items():
        losses = np.asarray(losses)
        assert np.all(np.isfinite(losses)), name
        assert losses[-30:].mean() < losses[:10].mean(), name
        # Only these two fall without end.
        assert (losses[-1] < -1) == (name in UNBOUNDED), (name, losses[-1])


# --- the smallest losses


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


def test_noise_of_the_noisy_quadratic_does_not_depend_on_the_point(run):
    family, config = (
        run.families["noisy_quadratic"],
        run.out["noisy_quadratic"]["config"],
    )
    task = family.task(config, ())

    def gradient(p, key):
        batch = task.batch(key, "train")
        return jax.value_and_grad(lambda p: task.loss(p, (), key, batch)[0])(p)

    noisy = mapped(gradient, (None, 0))
    losses, near = noisy(config["minimum"], KEYS)
    _, far = noisy(config["minimum"] + 100.0, KEYS)
    assert np.all(losses == 0)
    scale = np.asarray(config["scale"])
    np.testing.assert_allclose(far - near, [200 * scale**2] * len(KEYS), rtol=1e-3)
    assert scipy.stats.kstest(np.ravel(near), "norm").pvalue > 1e-4


def test_least_squares_optimum_equals_numpys():
    for condition in (1, 3):
        family = tasks.least_squares(30, 6, log10_condition=condition)
        config = jax.jit(family.sample)(KEY)
        matrix, target = _wide(config["matrix"]), _wide(config["target"])
        values = np.linalg.svd(matrix, compute_uv=False) / math.sqrt(30)
        np.testing.assert_allclose(values, np.logspace(0, -condition, 6), rtol=1e-3)
        best = np.linalg.lstsq(matrix, target)[1][0] / 60
        np.testing.assert_allclose(family.optimum(config, ()), best, rtol=1e-4)


def _sklearn_lasso(matrix, target, rho):
    from sklearn.linear_model import Lasso

    model = Lasso(rho / len(target), fit_intercept=False, tol=1e-10, max_iter=10**6)
    x = model.fit(_wide(matrix), _wide(target)).coef_
    residual = _wide(matrix) @ x - _wide(target)
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


def _flower_rows(run, name):
    label = int(run.out[name]["config"]["label"])
    train = tasks.load_dataset("iris").train
    return {"features": _wide(train["x"]), "labels": np.float64(train["y"] == label)}


@pytest.mark.parametrize("name", ["logistic", "flowers", "logistic_batches"])
def test_logistic_optimum_equals_scipys(run, name):
    config = run.out[name]["config"]
    rows = _flower_rows(run, name) if name == "flowers" else _wide(dict(config))
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


def test_landscape_wrappers_are_the_published_ones():
    base = tasks.landscape("bowl5").task({}, ())
    family = tasks.landscape("bowl5", log=True, rescale=3.0)
    task = family.task({}, ())
    start = task.init(KEY)[0]
    assert_close(start, 3 * base.init(KEY)[0])
    value = base.loss(start / 3, (), KEY, ())[0]
    loss = task.loss(start, (), KEY, ())[0]
    assert_close(loss, math.log(value + EPS) - math.log(EPS))
    assert_close(task.normalize(loss), base.normalize(value), rtol=1e-4)
    assert family.optimum({}, ()) == 0
    assert family.name == "bowl5-rescale3-log"
    sparse = tasks.landscape("rastrigin", 500, sparse=0.99).task({}, ())
    gradient = jax.grad(lambda x: sparse.loss(x, (), KEY, ())[0])
    nonzero = np.count_nonzero(gradient(sparse.init(KEY)[0]))
    assert abs(nonzero - 5) < ERRORS * math.sqrt(5)


def test_norm_and_matmul_have_their_optima_at_known_solutions(run):
    config = _wide(run.out["norm"]["config"])
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
    out = _wide(run.out["snake"])
    assert _snake(out["config"], np.array(path), out["batch"]) < 1e-5


def test_quadratics_with_as_many_rows_as_columns_reach_zero_and_others_do_not():
    for rows in (4, 9):
        family = tasks.open_l2o("quadratic", 4, rows=rows, instances=3)
        config = jax.jit(family.sample)(KEY)
        pairs = zip(_wide(config["matrix"]), _wide(config["target"]))
        left = [np.linalg.lstsq(w, y) for w, y in pairs]
        best = np.mean([r[1][0] if len(r[1]) else 0.0 for r in left])
        np.testing.assert_allclose(family.optimum(config, ()), best, rtol=1e-4)


# --- proximal methods


def test_ista_and_fista_equal_their_slow_forms(run):
    config = run.out["lasso"]["config"]
    problem = tasks.lasso_problem(**config)
    matrix, target = _wide(config["matrix"]), _wide(config["target"])
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
        rows = _flower_rows(run, name)
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
    features = _wide(config["features"])
    norm = np.linalg.norm(features, 2)
    problem = tasks.logistic_problem(**config)
    np.testing.assert_allclose(problem.lipschitz, norm**2 / 4000, rtol=1e-4)
    # At 0, where p (1 - p) is 1/4, the bound is the curvature itself.
    hessian = jax.jit(jax.hessian(problem.smooth))(jnp.zeros(50))
    largest = np.linalg.eigvalsh(_wide(hessian))[-1]
    np.testing.assert_allclose(problem.lipschitz, largest, rtol=1e-3)
    published = tasks.logistic_problem(**config, published_lipschitz=True)
    np.testing.assert_allclose(published.lipschitz, norm, rtol=1e-4)


# --- how problems are drawn


def test_spectra_have_the_condition_number():
    def curvature(spectrum, dim=6, kappa=2.0):
        family = tasks.quadratic(dim, spectrum=spectrum, log10_condition=kappa)
        return np.asarray(mapped(family.sample)(KEYS[:200])["curvature"])

    assert_log_uniform(curvature("log_uniform"), 1e-2, 1.0)
    uniform = (curvature("uniform") - 0.01) / 0.99
    assert scipy.stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-4
    np.testing.assert_allclose(curvature("two_clusters", 5)[0], [1, 1, 1, 0.01, 0.01])
    power = curvature("power_law")[0]
    np.testing.assert_allclose(power, np.arange(1, 7.0) ** -(2 / math.log10(6)), 1e-5)
    np.testing.assert_allclose(power[-1], 0.01, rtol=1e-5)
    np.testing.assert_allclose(curvature("single_spike")[0], [1] + [0.01] * 5)
    np.testing.assert_array_equal(curvature("power_law", 1)[0], [1])
    assert tasks.quadratic(3, rotated=True).name == "quadratic3-rotated"


def test_quadratics_draw_what_they_drew_before_they_had_options():
    key = jax.random.key(5)
    k_curvature, k_minimum = jax.random.split(key)
    exponent = jax.random.uniform(k_curvature, (3,), minval=-1.0, maxval=0)
    expected = {
        "curvature": 10.0**exponent,
        "minimum": jax.random.normal(k_minimum, (3,)),
    }
    assert not differ(tasks.quadratic(3).sample(key), expected)
    rotated = tasks.quadratic(3, rotated=True).sample(key)
    basis = rotated.pop("basis")
    assert not differ(rotated, expected)
    assert_close(basis @ basis.T, np.eye(3))


def test_sparse_vectors_have_so_many_entries_at_random_places():
    vectors = mapped(lambda a, b: sparse_vector(a, b, 8, 3), (0, 0))
    x = np.asarray(vectors(KEYS, KEYS[::-1]))
    assert np.all(np.count_nonzero(x, axis=1) == 3)
    share = (x != 0).mean(0)
    assert np.all(abs(share - 3 / 8) < ERRORS * math.sqrt(3 / 8 * 5 / 8 / len(KEYS)))
    assert scipy.stats.kstest(x[x != 0], "norm").pvalue > 1e-4


def test_lasso_has_unit_columns_and_a_sparse_solution():
    family = tasks.lasso()  # the published size
    config = jax.eval_shape(family.sample, KEY)
    assert config["matrix"].shape == (250, 500) and config["target"].shape == (250,)
    # More rows than columns show the solution that is to be found.
    config = jax.jit(tasks.lasso(40, 20, 5).sample)(KEY)
    matrix, target = _wide(config["matrix"]), _wide(config["target"])
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1, rtol=1e-5)
    normal = matrix.ravel() * math.sqrt(40)
    assert abs(normal.mean()) < 0.2 and 0.9 < normal.std() < 1.1
    x, (residual, *_), *_ = np.linalg.lstsq(matrix, target)
    assert np.sum(abs(x) > 1e-4) == 5 and residual < 1e-9
    noisy = jax.jit(tasks.lasso(40, 20, 5, noise=0.5).sample)(KEY)
    np.testing.assert_allclose(np.std(noisy["target"] - target), 0.5, rtol=0.4)


def test_logistic_labels_are_those_of_a_sparse_vector(runs):
    config = runs["logistic"]["config"]
    labels = np.asarray(config["labels"])
    assert set(labels.ravel()) == {0, 1}
    assert abs(labels.mean() - 0.5) < 0.15
    features = np.asarray(config["features"])
    assert scipy.stats.kstest(features.ravel(), "norm").pvalue > 1e-4
    # Separable, so that without a 1-norm the loss could become 0: a perceptron ends.
    x, signs = np.zeros(5), 2 * labels[0] - 1
    for _ in range(10**4):
        (wrong,) = np.nonzero(signs * (features[0] @ x) <= 0)
        if not len(wrong):
            break
        x += signs[wrong[0]] * features[0][wrong[0]]
    assert not len(wrong)


def test_tables_are_split_into_one_class_and_the_others(run, runs):
    labels = np.asarray(runs["flowers"]["config"]["label"])
    assert set(labels) == {0, 1, 2}
    batch = run.out["flowers"]["batch"]
    rows = _flower_rows(run, "flowers")
    assert_close(batch["features"], rows["features"])
    assert_close(batch["labels"], rows["labels"])
    family = run.families["flowers"]
    task = family.task(run.out["flowers"]["config"], family.data)
    assert len(task.batch(KEY, "test")["labels"]) == 15
    assert run.out["flowers_smooth"]["batch"]["features"].shape == (10, 4)
    two = tasks.logistic_regression(dataset="breast_cancer")
    assert two.sample(KEY)["label"] == 1
    assert SPECS["flowers"].datasets == ("iris",)


def test_open_l2o_draws_as_published(run):
    family = tasks.open_l2o("quadratic")
    config = jax.jit(family.sample)(KEY)
    assert config["matrix"].shape == (128, 10, 10)
    for value in config.values():
        assert scipy.stats.kstest(np.ravel(value), "uniform").pvalue > 1e-4
    start = np.ravel(jax.jit(family.task(config, ()).init)(KEY)[0])
    assert len(start) == 1280
    assert scipy.stats.kstest(start / 0.01, "norm").pvalue > 1e-4
    family = tasks.open_l2o("rastrigin", 2)
    config = jax.jit(family.sample)(KEY)
    config["start"] = jax.jit(family.task(config, ()).init)(KEY)[0]
    for value in config.values():
        assert scipy.stats.kstest(np.ravel(value), "norm").pvalue > 1e-4


def test_l2o_scale_examples_are_bits_or_symmetric(run):
    bits = np.asarray(run.out["snake"]["config"]["examples"])
    assert bits.shape == (1000, 5) and set(bits.ravel()) == {0, 1}
    assert abs(bits.mean() - 0.5) < ERRORS * 0.5 / math.sqrt(bits.size)
    d = np.asarray(run.out["sum"]["config"]["examples"])
    np.testing.assert_array_equal(d[:500], -d[500:])
    assert scipy.stats.kstest(d[:500].ravel(), "norm").pvalue > 1e-4
    assert run.out["sum"]["batch"].shape == (9, 5)


def test_landscapes_start_where_they_did():
    for name, (low, high) in {
        "rosenbrock": (-5, 10),
        "ackley": (-32.768, 32.768),
        "beale": (-4.5, 4.5),
        "styblinski_tang": (-5, 5),
        "michalewicz": (0, PI),
    }.items():
        init = tasks.landscape(name).task({}, ()).init
        x = (np.ravel(mapped(init)(KEYS[:500])[0]) - low) / (high - low)
        assert scipy.stats.kstest(x, "uniform").pvalue > 1e-4, name
    x, y = np.asarray(mapped(tasks.landscape("branin").task({}, ()).init)(KEYS)[0]).T
    assert -5 <= x.min() < -4.9 and 9.9 < x.max() <= 10
    assert 0 <= y.min() < 0.1 and 14.9 < y.max() <= 15


def test_matmul_and_sparse_coding_start_from_unit_columns_and_small_codes(run, runs):
    start = runs["matmul"]["start"]
    assert start["a"].shape == (16, 4, 7)
    for x in start.values():
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert differ(start["a"], start["b"])
    data = np.asarray(run.families["patches"].data)
    np.testing.assert_allclose(data.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(data.std(), 1, rtol=1e-5)
    codes = np.ravel(runs["patches"]["start"]["codes"])
    assert scipy.stats.kstest(codes / 0.01, "norm").pvalue > 1e-4
    # Two unit atoms of eight span each synthetic signal: variance 2 in all.
    signals = np.asarray(runs["sparse_coding"]["config"]["signals"])
    assert abs(np.mean(np.sum(signals**2, -1)) - 2) < 1
    square = np.sum(np.asarray(signals) ** 2, (1, 2)) / 8
    np.testing.assert_allclose(runs["sparse_coding"]["start_loss"], square, rtol=0.1)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("quadratic", {"spectrum": "flat"}, "'flat'; known: log_uniform, uniform"),
        ("least_squares", {"rows": 3, "dim": 4}, "rows >= dim, not 3 < 4"),
        ("lasso", {"gradient": "sub"}, "'sub'; known: full, smooth"),
        ("lasso", {"dim": 4}, "50 of 4 entries"),
        ("logistic_regression", {"dim": 4}, "20 of 4 entries"),
        ("logistic_regression", {"dataset": "diabetes"}, "integer labels"),
        ("landscape", {"name": "mountain"}, "known: rosenbrock, rastrigin"),
        ("landscape", {"name": "booth", "dim": 3}, "booth has 2 dimensions, not 3"),
        ("landscape", {"name": "ackley", "dim": 1}, "at least 2 dimensions"),
        ("landscape", {"name": "saddle", "log": True}, "never negative"),
        ("landscape", {"rescale": 0.0}, "rescale must be positive"),
        ("landscape", {"sparse": 1.5}, "sparse a probability"),
        ("l2o_scale", {"name": "bowl"}, "known: quadratic, lasso, rastrigin"),
        ("l2o_scale", {"name": "rastrigin", "log": True}, "never negative"),
        ("open_l2o", {"name": "mnist"}, "known: quadratic, lasso, rastrigin"),
        ("matmul_algorithm", {"rank": 3}, "from 4 to 8 for size 2, not 3"),
        ("sparse_coding", {"atoms": 2}, "5 of 2 atoms"),
    ],
)
def test_what_makes_no_problem_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.make_family(kind, **options)
