"""Classical and convex problems, and their losses once more, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from helpers import KEYS

from l2o import tasks
from l2o.tasks import TaskSpec

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


# The losses once more.


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


def snake(config, x, d):
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
    "snake": snake,
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


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


class Run:
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


def flower_rows(run, name):
    label = int(run.out[name]["config"]["label"])
    train = tasks.load_dataset("iris").train
    return {"features": wide(train["x"]), "labels": np.float64(train["y"] == label)}
