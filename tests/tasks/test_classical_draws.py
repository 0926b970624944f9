"""How classical and convex problems are drawn, and which are refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from classical_forms import EPS, PI, wide
from helpers import ERRORS, KEY, KEYS, assert_close, assert_log_uniform, differ, mapped

from l2o import tasks
from l2o.tasks.families._lasso import sparse_vector
from l2o.tasks.families._variants import above_floor

pytestmark = pytest.mark.usefixtures("compiled_as_it_stands")


def test_above_floor_is_log_scaled_from_the_floor_up():
    losses = jnp.array([-1.0, 3.0, 3.0 + 4.0 / math.e, 7.0, 7e9])
    assert_close(above_floor(3.0, 4.0)(losses), [0, 0, 1.8, 2, 2.2])
    losses = jnp.array([-1e9, -2 * math.sinh(5), 0.0, 2 * math.sinh(0.5)])
    assert_close(above_floor(None, 2.0)(losses), [0, 1, 2, 2.1])


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
    matrix, target = wide(config["matrix"]), wide(config["target"])
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1, rtol=1e-5)
    normal = matrix.ravel() * math.sqrt(40)
    assert abs(normal.mean()) < 0.2 and 0.9 < normal.std() < 1.1
    x, (residual, *_), *_ = np.linalg.lstsq(matrix, target)
    assert np.sum(abs(x) > 1e-4) == 5 and residual < 1e-9
    noisy = jax.jit(tasks.lasso(40, 20, 5, noise=0.5).sample)(KEY)
    np.testing.assert_allclose(np.std(noisy["target"] - target), 0.5, rtol=0.4)


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
