"""Classical and convex families: losses against formulas, and what is drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from classical_forms import FORMULAS, GRADIENTS, SPECS, UNBOUNDED, flower_rows, wide
from helpers import ERRORS, KEY, KEYS, assert_close, differ, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import TaskSpec

pytestmark = pytest.mark.usefixtures("compiled_as_it_stands")


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


@pytest.mark.parametrize("name", SPECS)
def test_loss_and_gradient_equal_the_formula(run, name):
    out = run.out[name]
    config, x, batch = (wide(out[part]) for part in ("config", "x", "batch"))
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
    rows = flower_rows(run, "flowers")
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
