"""Quadratics and image MLPs against closed forms and plain re-implementations."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import (
    DARK,
    ERRORS,
    KEY,
    KEYS,
    LABELS,
    RNG,
    assert_close,
    assert_log_uniform,
    assert_uniform_integers,
    differ,
    mapped,
)

from l2o import tasks


def test_clipped_bounds_the_loss_and_counts_nan_as_the_maximum():
    losses = jnp.array([-1.0, 0.5, 2.0, 3.0, jnp.inf, -jnp.inf, jnp.nan])
    assert_close(tasks.clipped(2.0)(losses), [0, 0.5, 2, 2, 2, 0, 2])


def test_logarithm_counts_ratios_within_bounds_and_nan_as_the_maximum():
    losses = jnp.array([-1.0, 1e-9, 0.5, 1.0, 3.0, jnp.inf, jnp.nan])
    low, high = np.log([1e-6, 2.0])
    expected = [low, low, np.log(0.5), 0, high, high, high]
    assert_close(tasks.logarithm(2.0)(losses), expected)


def test_stateless_passes_the_model_state_through():
    task = tasks.stateless(
        init=lambda key: {"x": jnp.ones(2)},
        batch=lambda key, split: jnp.full(2, 3.0),
        loss=lambda params, key, batch: jnp.sum(params["x"] * batch),
    )
    params, state = task.init(KEY)
    assert state == ()
    loss, (state, aux) = task.loss(params, "kept", KEY, task.batch(KEY, "train"))
    assert (float(loss), state, aux) == (6.0, "kept", {})
    assert task.normalize(loss) is loss


def test_quadratic_has_minimum_zero_where_its_config_says():
    family = tasks.quadratic(4)
    config = family.sample(KEY)
    task = family.task(config, family.data)
    batch = task.batch(KEY, "train")
    assert task.loss(config["minimum"], (), KEY, batch)[0] == 0
    params, state = task.init(KEY)
    assert params.shape == (4,) and state == ()
    assert task.loss(params, (), KEY, batch)[0] > 0


def test_quadratic_loss_and_gradient_equal_the_closed_form():
    family = tasks.quadratic(5, noise=0.7)
    config = family.sample(KEY)
    task = family.task(config, family.data)
    x, shift = task.init(KEYS[0])[0], task.batch(KEYS[1], "train")
    loss, grad = jax.value_and_grad(lambda x: task.loss(x, (), KEY, shift)[0])(x)
    curvature = np.asarray(config["curvature"])
    distance = np.asarray(x - config["minimum"] - shift)
    assert_close(loss, 0.5 * np.sum(curvature * distance**2))
    assert_close(grad, curvature * distance)


def test_quadratic_curvatures_are_log_uniform_up_to_the_condition_number():
    family = tasks.quadratic(3, log10_condition=2.0)
    config = mapped(family.sample)(KEYS)
    assert_log_uniform(config["curvature"], 1e-2, 1.0)
    minimum = np.asarray(config["minimum"])
    assert scipy.stats.kstest(minimum.ravel(), "norm").pvalue > 1e-4


def test_quadratic_without_noise_has_one_loss_for_all_keys():
    family = tasks.quadratic(3)
    task = family.task(family.sample(KEY), family.data)

    def loss(key):
        return task.loss(jnp.ones(3), (), key, task.batch(key, "train"))[0]

    assert len(np.unique(mapped(loss)(KEYS[:20]))) == 1


def test_noisy_quadratic_gradient_is_unbiased():
    noisy, exact = tasks.quadratic(4, noise=0.5), tasks.quadratic(4)
    config = noisy.sample(KEY)
    x = jnp.arange(4.0)

    def gradient(family, key):
        task = family.task(config, family.data)
        batch = task.batch(key, "train")
        return jax.grad(lambda x: task.loss(x, (), key, batch)[0])(x)

    samples = np.asarray(mapped(lambda key: gradient(noisy, key))(KEYS))
    error = samples.std(0) / math.sqrt(len(KEYS))
    bias = samples.mean(0) - np.asarray(jax.jit(lambda: gradient(exact, KEY))())
    assert np.all(abs(bias) < ERRORS * error)
    expected = 0.5 * np.asarray(config["curvature"])
    np.testing.assert_allclose(samples.std(0), expected, rtol=0.1)


BRIGHT = tasks.from_arrays({"x": RNG.uniform(5, 6, (100, 2, 2, 1)), **LABELS})


NUMPY_ACTIVATIONS = (
    lambda x: np.maximum(x, 0),
    np.tanh,
    lambda x: x * scipy.special.expit(x),
)


class _Mlps:
    """One run of a two-layer family per (dataset, activation), vmapped over configs."""

    def __init__(self):
        self.family = tasks.image_mlp([DARK, BRIGHT], hidden=(5, 4), batch_size=8)
        self.choices = list(itertools.product(range(2), range(3)))
        self.configs = {
            "dataset": jnp.array([d for d, _ in self.choices]),
            "activation": jnp.array([a for _, a in self.choices]),
            "init_scale": jnp.linspace(0.5, 2.0, 6),
        }
        self.traces = 0
        self.jitted = mapped(self._run, (0, None, None))
        self.params, self.batch, self.loss, self.zero_loss = self.run(self.configs)

    def _run(self, config, key, data):
        self.traces += 1
        task = self.family.task(config, data)
        params, state = task.init(key)
        batch = task.batch(key, "train")
        zeros = jax.tree.map(jnp.zeros_like, params)
        losses = [task.loss(p, state, key, batch)[0] for p in (params, zeros)]
        return params, batch, *losses

    def run(self, configs):
        return self.jitted(configs, KEY, self.family.data)


@pytest.fixture(scope="module")
def mlps():
    return _Mlps()


def test_image_mlp_dataset_index_selects_the_dataset(mlps):
    for i, (dataset, _) in enumerate(mlps.choices):
        x, y = mlps.batch["x"][i], mlps.batch["y"][i]
        assert np.all((x >= 5 * dataset) & (x <= 5 * dataset + 1))
        # What was selected is an example, not a mixture of two datasets' examples.
        source = np.asarray((DARK, BRIGHT)[dataset].train["x"]).reshape(-1, 4)
        labels = np.asarray((DARK, BRIGHT)[dataset].train["y"])
        for image, label in zip(np.asarray(x).reshape(-1, 4), np.asarray(y)):
            (index,) = np.nonzero((source == image).all(1))[0]
            assert labels[index] == label


def test_image_mlp_activation_index_selects_the_activation(mlps):
    losses = []
    for i, (_, activation) in enumerate(mlps.choices):
        layers = jax.tree.map(lambda x, i=i: np.asarray(x[i], np.float64), mlps.params)
        h = np.asarray(mlps.batch["x"][i], np.float64).reshape(8, 4)
        for layer in layers[:-1]:
            h = NUMPY_ACTIVATIONS[activation](h @ layer["w"] + layer["b"])
        logits = h @ layers[-1]["w"] + layers[-1]["b"]
        log_p = scipy.special.log_softmax(logits, -1)
        losses.append(-log_p[np.arange(8), np.asarray(mlps.batch["y"][i])].mean())
    np.testing.assert_allclose(mlps.loss, losses, rtol=1e-5)
    assert len({round(loss, 4) for loss in losses}) == 6


def test_image_mlp_init_scale_multiplies_the_weights(mlps):
    sizes = [(4, 5), (5, 4), (4, 10)]
    assert [layer["w"].shape[1:] for layer in mlps.params] == sizes
    scale = np.asarray(mlps.configs["init_scale"])[:, None, None]
    for layer, (fan_in, _) in zip(mlps.params, sizes):
        base = np.asarray(layer["w"]) / scale
        np.testing.assert_allclose(base, np.broadcast_to(base[:1], base.shape), 1e-6)
        assert abs(base).max() <= 2 / math.sqrt(fan_in)
        assert np.all(np.asarray(layer["b"]) == 0)


def test_image_mlp_weights_are_truncated_normal_with_fan_in():
    family = tasks.image_mlp([DARK], hidden=(4000,), batch_size=8)
    config = {"dataset": 0, "activation": 0, "init_scale": 1.0}
    params, _ = jax.jit(family.task(config, family.data).init)(KEY)
    for layer, fan_in in zip(params, (4, 4000)):
        w = np.asarray(layer["w"]).ravel() * math.sqrt(fan_in)
        assert scipy.stats.kstest(w, scipy.stats.truncnorm(-2, 2).cdf).pvalue > 1e-4


def test_image_mlp_loss_without_weights_is_log_of_the_class_count(mlps):
    np.testing.assert_allclose(mlps.zero_loss, math.log(10), rtol=1e-6)


def test_image_mlp_configs_share_one_compiled_program(mlps):
    other = {name: value[::-1] for name, value in mlps.configs.items()}
    assert differ(mlps.run(other)[2], mlps.loss)
    assert mlps.traces == 1


def test_image_mlp_samples_all_choices_uniformly(mlps):
    config = mapped(mlps.family.sample)(KEYS)
    assert_uniform_integers(config["dataset"], 2)
    assert_uniform_integers(config["activation"], 3)
    assert_log_uniform(config["init_scale"], 0.5, 2.0)
    together = 3 * np.asarray(config["dataset"]) + np.asarray(config["activation"])
    assert_uniform_integers(together, 6)


def test_image_mlp_meta_loss_is_clipped_at_the_classes(mlps):
    config = jax.tree.map(lambda x: x[0], mlps.configs)
    normalize = mlps.family.task(config, mlps.family.data).normalize
    maximum = 1.5 * math.log(10)
    losses = jnp.array([-1.0, 1.0, maximum + 1, jnp.nan, jnp.inf])
    assert_close(normalize(losses), [0, 1, maximum, maximum, maximum])


def test_image_mlp_refuses_datasets_that_do_not_go_together():
    wide = tasks.from_arrays({"x": np.zeros((100, 2, 3, 1)), **LABELS})
    with pytest.raises(ValueError, match=r"\(2, 2, 1\), 10\), \(\(2, 3, 1\), 10\)"):
        tasks.image_mlp([DARK, wide])
    binary = {"x": np.zeros((100, 2, 2, 1)), "y": np.arange(100) % 2}
    with pytest.raises(ValueError, match="one number of classes"):
        tasks.image_mlp([DARK, tasks.from_arrays(binary)])
    with pytest.raises(ValueError, match="not none at all"):
        tasks.image_mlp([])


def test_image_mlp_is_named_after_its_layers():
    assert tasks.image_mlp([DARK], (8, 4)).name == "mlp8x4"
    assert tasks.image_mlp([DARK], (8, 4), name="mine").name == "mine"


def test_cross_entropy_equals_scipys_log_softmax_at_any_scale():
    logits = RNG.normal(size=(3, 5, 7)) * np.array([1.0, 50.0, 1e4])[:, None, None]
    labels = RNG.integers(0, 7, (3, 5))
    log_p = scipy.special.log_softmax(logits, -1)
    expected = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    loss = jax.jit(tasks.cross_entropy)
    for scaled, expected_row, row in zip(logits, expected, labels):
        np.testing.assert_allclose(loss(scaled, row), expected_row.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(logits, labels), expected.mean(), rtol=1e-5)
