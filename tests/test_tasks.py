"""Inner problems: data, families, reparametrisation and models from flax and haiku."""

import doctest
import functools
import importlib
import inspect
import itertools
import math
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from flax import nnx
from l2o.meta_train import constant, inner_init, pes, unroll
from l2o.tasks import FAMILIES, HELDOUT, SPLITS, _heldout

import l2o
from l2o import tasks

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 2000)
# A sound implementation fails a check at four standard errors once in 16 000.
ERRORS = 4


def _assert_log_uniform(values, low, high):
    logs = np.log(np.asarray(values, np.float64)).ravel()
    width = math.log(high / low)
    assert logs.min() >= math.log(low) - 1e-5
    assert logs.max() <= math.log(high) + 1e-5
    error = width / math.sqrt(12 * logs.size)
    assert abs(logs.mean() - math.log(low * high) / 2) < ERRORS * error
    assert scipy.stats.kstest((logs - math.log(low)) / width, "uniform").pvalue > 1e-4


def _assert_uniform_integers(values, count):
    values = np.asarray(values)
    error = math.sqrt((1 / count) * (1 - 1 / count) / values.size)
    shares = np.bincount(values, minlength=count) / values.size
    assert shares.shape == (count,)
    assert np.all(abs(shares - 1 / count) < ERRORS * error)


def _assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def _map(f, in_axes=0):
    return jax.jit(jax.vmap(f, in_axes))


def _differ(a, b):
    return any(
        np.any(np.asarray(x) != np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _whole(dataset, name):
    return np.concatenate([np.asarray(split[name]) for split in dataset])


# Datasets


def test_from_arrays_puts_every_example_into_exactly_one_split():
    data = tasks.from_arrays({"index": np.arange(103)})
    assert [len(split["index"]) for split in data] == [73, 10, 10, 10]
    assert sorted(_whole(data, "index")) == list(range(103))


def test_from_arrays_keeps_the_arrays_of_an_example_together():
    data = tasks.from_arrays(
        {"x": np.arange(40.0).reshape(20, 2), "y": np.arange(20)}, (5, 4, 3)
    )
    assert [len(split["y"]) for split in data] == [5, 4, 3, 8]
    for split in data:
        np.testing.assert_array_equal(split["x"][:, 0], 2 * split["y"])


def test_from_arrays_refuses_arrays_of_different_lengths():
    with pytest.raises(ValueError, match=r"different numbers .*'x': 20, 'y': 19"):
        tasks.from_arrays({"x": np.zeros((20, 2)), "y": np.zeros(19)})


@pytest.mark.parametrize(
    "sizes", [(10, 5, 5), (20, 5, 5), (0, 5, 5), (10, -1, 5), None]
)
def test_from_arrays_refuses_an_empty_split(sizes):
    total = 9 if sizes is None else 20
    with pytest.raises(ValueError, match=f"cannot cut .* from {total} examples"):
        tasks.from_arrays({"x": np.zeros(total)}, sizes)


def test_digits_are_scikit_learns_in_a_recorded_order():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    data = tasks.digits()
    assert [len(split["y"]) for split in data] == [1200, 150, 150, 297]
    np.testing.assert_array_equal(_whole(data, "y"), labels[order])
    np.testing.assert_array_equal(
        _whole(data, "x"), (images[order] / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    )
    # Another numpy could shuffle otherwise from the same seed, and nothing else here
    # would notice that its test split holds what used to be trained on.
    assert order[:6].tolist() == [360, 1773, 1482, 600, 850, 196]


def test_patches_are_tiles_of_their_photograph_and_band():
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    data = tasks.patches()
    assert [len(split["y"]) for split in data] == [5936, 848, 848, 848]
    x, y = _whole(data, "x"), _whole(data, "y")
    for position, index in enumerate(np.random.default_rng(0).permutation(8480)[:50]):
        image, tile = divmod(index, 53 * 80)
        row, column = divmod(tile, 80)
        square = images[image][8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_allclose(
            x[position, :, :, 0], square.mean(-1) / 255, rtol=1e-6
        )
        assert y[position] == 5 * image + 5 * row // 53


@pytest.mark.parametrize("dataset", [tasks.digits, tasks.patches])
def test_images_are_grey_in_the_unit_range_with_ten_classes(dataset):
    data = dataset()
    for split in data:
        assert split["x"].shape == (len(split["y"]), 8, 8, 1)
        assert (split["x"].dtype, split["y"].dtype) == (jnp.float32, jnp.int32)
        assert set(np.unique(split["y"])) == set(range(10))
    x = _whole(data, "x")
    assert x.min() >= 0 and 0.9 < x.max() <= 1


def test_python_docs_are_shifted_windows_of_the_text():
    raw = tasks._data._python_docs_bytes()
    ascii_only = bytes(byte if byte < 128 else ord("?") for byte in raw)
    data = tasks.python_docs(7)
    x, y = _whole(data, "x"), _whole(data, "y")
    assert x.dtype == y.dtype == np.int32
    assert len(x) == len(raw) // 8 and len(x) > 10_000
    assert x.min() >= 0 and x.max() < 128
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    windows = [bytes(row) for row in np.c_[x, y[:, -1:]].astype(np.uint8)]
    assert sorted(windows) == sorted(
        ascii_only[i : i + 8] for i in range(0, len(raw) - 7, 8)
    )
    assert tasks.python_docs().train["x"].shape[1:] == (32,)


def test_text_fingerprint_is_of_the_text(monkeypatch):
    fingerprint = tasks.text_fingerprint()
    assert len(fingerprint) == 12 and int(fingerprint, 16) >= 0
    monkeypatch.setattr(tasks._data, "_python_docs_bytes", lambda: b"abc")
    assert tasks.text_fingerprint() == "ba7816bf8f01"  # FIPS 180-4's example


def test_a_dataset_first_used_inside_jit_can_be_used_outside():
    tasks.digits.cache_clear()
    inside = jax.jit(lambda: tasks.digits().train["x"].sum())()
    np.testing.assert_allclose(tasks.digits().train["x"].sum(), inside, rtol=1e-6)


# Batches

TINY = tasks.from_arrays({"x": 3.0 * np.arange(30), "y": np.arange(30)}, (12, 6, 5))


def test_sample_batch_draws_whole_examples_of_its_split_only():
    def draw(split):
        return _map(lambda key: tasks.sample_batch(TINY, split, key, 5))(KEYS[:50])

    for split in SPLITS:
        draws = draw(split)
        assert draws["x"].shape == draws["y"].shape == (50, 5)
        members = np.sort(getattr(TINY, split)["y"])
        np.testing.assert_array_equal(np.unique(draws["y"]), members)
        np.testing.assert_array_equal(draws["x"], 3 * draws["y"])


def test_sample_batch_is_uniform_and_with_replacement():
    y = _map(lambda key: tasks.sample_batch(TINY, "train", key, 12)["y"])(KEYS)
    ranks = np.searchsorted(np.sort(TINY.train["y"]), np.asarray(y).ravel())
    _assert_uniform_integers(ranks, 12)
    assert any(len(set(batch)) < 12 for batch in np.asarray(y[:3]).tolist())


def test_a_batch_depends_on_the_key_only():
    def draw(key, data):
        return tasks.sample_batch(data, "test", key, 7)["y"]

    eager = draw(KEY, TINY)
    np.testing.assert_array_equal(eager, draw(KEY, TINY))
    np.testing.assert_array_equal(eager, jax.jit(draw)(KEY, TINY))
    batched = _map(draw, (0, None))(jnp.stack([KEYS[0], KEY]), TINY)
    np.testing.assert_array_equal(eager, batched[1])
    assert _differ(batched[0], batched[1])


def test_sample_batch_names_the_known_splits():
    with pytest.raises(ValueError, match=r"'valid'; known: " + ", ".join(SPLITS)):
        tasks.sample_batch(TINY, "valid", KEY, 2)


def test_sample_batch_refuses_a_batch_larger_than_the_split():
    with pytest.raises(ValueError, match=r"batch of 7 .*'inner_valid' with 6 examples"):
        tasks.sample_batch(TINY, "inner_valid", KEY, 7)
    assert len(tasks.sample_batch(TINY, "inner_valid", KEY, 6)["y"]) == 6


# Task helpers


def test_clipped_bounds_the_loss_and_counts_nan_as_the_maximum():
    losses = jnp.array([-1.0, 0.5, 2.0, 3.0, jnp.inf, -jnp.inf, jnp.nan])
    _assert_close(tasks.clipped(2.0)(losses), [0, 0.5, 2, 2, 2, 0, 2])


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


# Quadratics


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
    _assert_close(loss, 0.5 * np.sum(curvature * distance**2))
    _assert_close(grad, curvature * distance)


def test_quadratic_curvatures_are_log_uniform_up_to_the_condition_number():
    family = tasks.quadratic(3, log10_condition=2.0)
    config = _map(family.sample)(KEYS)
    _assert_log_uniform(config["curvature"], 1e-2, 1.0)
    minimum = np.asarray(config["minimum"])
    assert scipy.stats.kstest(minimum.ravel(), "norm").pvalue > 1e-4


def test_quadratic_without_noise_has_one_loss_for_all_keys():
    family = tasks.quadratic(3)
    task = family.task(family.sample(KEY), family.data)

    def loss(key):
        return task.loss(jnp.ones(3), (), key, task.batch(key, "train"))[0]

    assert len(np.unique(_map(loss)(KEYS[:20]))) == 1


def test_noisy_quadratic_gradient_is_unbiased():
    noisy, exact = tasks.quadratic(4, noise=0.5), tasks.quadratic(4)
    config = noisy.sample(KEY)
    x = jnp.arange(4.0)

    def gradient(family, key):
        task = family.task(config, family.data)
        batch = task.batch(key, "train")
        return jax.grad(lambda x: task.loss(x, (), key, batch)[0])(x)

    samples = np.asarray(_map(lambda key: gradient(noisy, key))(KEYS))
    error = samples.std(0) / math.sqrt(len(KEYS))
    bias = samples.mean(0) - np.asarray(jax.jit(lambda: gradient(exact, KEY))())
    assert np.all(abs(bias) < ERRORS * error)
    expected = 0.5 * np.asarray(config["curvature"])
    np.testing.assert_allclose(samples.std(0), expected, rtol=0.1)


# Image MLPs

_RNG = np.random.default_rng(7)
_LABELS = {"y": np.arange(100, dtype=np.int32) % 10}
DARK = tasks.from_arrays({"x": _RNG.uniform(0, 1, (100, 2, 2, 1)), **_LABELS})
BRIGHT = tasks.from_arrays({"x": _RNG.uniform(5, 6, (100, 2, 2, 1)), **_LABELS})
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
        self.jitted = _map(self._run, (0, None, None))
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
    assert _differ(mlps.run(other)[2], mlps.loss)
    assert mlps.traces == 1


def test_image_mlp_samples_all_choices_uniformly(mlps):
    config = _map(mlps.family.sample)(KEYS)
    _assert_uniform_integers(config["dataset"], 2)
    _assert_uniform_integers(config["activation"], 3)
    _assert_log_uniform(config["init_scale"], 0.5, 2.0)
    together = 3 * np.asarray(config["dataset"]) + np.asarray(config["activation"])
    _assert_uniform_integers(together, 6)


def test_image_mlp_meta_loss_is_clipped_at_the_classes(mlps):
    config = jax.tree.map(lambda x: x[0], mlps.configs)
    normalize = mlps.family.task(config, mlps.family.data).normalize
    maximum = 1.5 * math.log(10)
    losses = jnp.array([-1.0, 1.0, maximum + 1, jnp.nan, jnp.inf])
    _assert_close(normalize(losses), [0, 1, maximum, maximum, maximum])


def test_image_mlp_refuses_images_of_different_shapes():
    wide = tasks.from_arrays({"x": np.zeros((100, 2, 3, 1)), **_LABELS})
    with pytest.raises(ValueError, match=r"shape: \[\(2, 2, 1\), \(2, 3, 1\)\]"):
        tasks.image_mlp([DARK, wide])


def test_image_mlp_is_named_after_its_layers():
    assert tasks.image_mlp([DARK], (8, 4)).name == "mlp8x4"
    assert tasks.image_mlp([DARK], (8, 4), name="mine").name == "mine"


def test_cross_entropy_equals_scipys_log_softmax_at_any_scale():
    logits = _RNG.normal(size=(3, 5, 7)) * np.array([1.0, 50.0, 1e4])[:, None, None]
    labels = _RNG.integers(0, 7, (3, 5))
    log_p = scipy.special.log_softmax(logits, -1)
    expected = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    loss = jax.jit(tasks.cross_entropy)
    for scaled, expected_row, row in zip(logits, expected, labels):
        np.testing.assert_allclose(loss(scaled, row), expected_row.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(logits, labels), expected.mean(), rtol=1e-5)


# Reparametrisation

LEVELS = ("global", "tensor", "parameter")
_COUNTED = tasks.TaskFamily(
    sample=lambda key: {"target": jax.random.normal(key, (3,))},
    task=lambda config, data: tasks.Task(
        init=lambda key: (
            {"a": jax.random.normal(key, (3,)), "b": jnp.full((2, 2), 3.0)},
            jnp.zeros(()),
        ),
        batch=lambda key, split: jax.random.normal(key, (2, 2)),
        loss=lambda params, state, key, batch: (
            jnp.sum((params["a"] - config["target"]) ** 4)
            + jnp.sum(batch * jnp.sin(params["b"])),
            (state + jnp.sum(params["b"]), {"drawn": jax.random.uniform(key)}),
        ),
        normalize=tasks.clipped(1.0),
    ),
    name="counted",
)


@functools.cache
def _both_ways(level):
    """The family and its reparametrised self at the same points, for three configs."""
    family = tasks.reparametrize(_COUNTED, level, (0.1, 10.0))
    k_init, k_loss = KEYS[:2]

    def evaluate(key):
        config = family.sample(key)
        scaled = family.task(config, family.data)
        base = _COUNTED.task(_COUNTED.sample(key), _COUNTED.data)

        def run(task):
            params, state = task.init(k_init)
            batch = task.batch(k_loss, "train")
            value = jax.value_and_grad(task.loss, has_aux=True)(
                params, state, k_loss, batch
            )
            return params, batch, value

        scale = config["scale"]
        if level == "global":
            scale = {"a": scale, "b": scale}
        return config, scale, run(scaled), run(base)

    return _map(evaluate)(KEYS[:3])


def _scaled(tree, scale):
    def multiply(x, s):
        x, s = np.asarray(x), np.asarray(s)
        return x * s.reshape(s.shape + (1,) * (x.ndim - s.ndim))

    return jax.tree.map(multiply, tree, scale)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_parameters_times_scale_are_the_familys(level):
    _, scale, (params, batch, _), (base_params, base_batch, _) = _both_ways(level)
    _assert_close(_scaled(params, scale), base_params)
    np.testing.assert_array_equal(batch, base_batch)
    assert _differ(params, base_params)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_loss_state_and_aux_are_the_familys(level):
    _, _, (_, _, (value, _)), (_, _, (base_value, _)) = _both_ways(level)
    _assert_close(value, base_value)
    assert value[1][1].keys() == {"drawn"}


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_gradient_follows_the_chain_rule(level):
    _, scale, (_, _, (_, grad)), (_, _, (_, base_grad)) = _both_ways(level)
    _assert_close(grad, _scaled(base_grad, scale), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_config_holds_the_familys_own(level):
    config, _, _, _ = _both_ways(level)
    _assert_close(config["base"], _map(_COUNTED.sample)(KEYS[:3]))
    shapes = jax.tree.map(lambda s: s.shape[1:], config["scale"])
    assert shapes == {
        "global": (),
        "tensor": {"a": (), "b": ()},
        "parameter": {"a": (3,), "b": (2, 2)},
    }.get(level)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrization_scales_are_independent_and_log_uniform(level):
    family = tasks.reparametrize(_COUNTED, level, (1e-3, 10.0))
    config = _map(family.sample)(KEYS)
    scales = [np.reshape(s, (len(KEYS), -1)) for s in jax.tree.leaves(config["scale"])]
    scales = np.concatenate(scales, 1)
    assert scales.shape[1] == {"global": 1, "tensor": 2, "parameter": 7}[level]
    _assert_log_uniform(scales, 1e-3, 10.0)
    drawn = np.concatenate([np.log(scales), config["base"]["target"]], 1)
    correlation = np.corrcoef(drawn.T) - np.eye(drawn.shape[1])
    # 45 pairs at most: five standard errors where the other checks take four.
    assert abs(correlation).max() < 5 / math.sqrt(len(KEYS))


def test_reparametrization_keeps_its_scale_for_a_task():
    family = tasks.reparametrize(_COUNTED, "parameter", (0.1, 10.0))
    config = family.sample(KEY)
    _assert_close(config, family.sample(KEY), rtol=0, atol=0)
    base = _COUNTED.task(config["base"], _COUNTED.data)
    for key in KEYS[:2]:
        scaled = family.task(config, family.data).init(key)[0]
        _assert_close(_scaled(scaled, config["scale"]), base.init(key)[0])


def test_sgd_on_a_rescaled_quadratic_is_sgd_with_another_learning_rate():
    lr, steps = 0.05, 8
    base = tasks.quadratic(4)
    family = tasks.reparametrize(base)

    @jax.jit
    def run(config):
        def final(task, lr):
            tx = optax.sgd(lr)
            state = inner_init(tx, task, KEY)
            end, losses = unroll(tx, task, state, KEY, jnp.arange(steps))
            return state.params, end.params, losses

        s = config["scale"]
        scaled = final(family.task(config, family.data), lr)
        return scaled, final(base.task(config["base"], base.data), lr * s**2)

    s = 1.7
    config = {"base": base.sample(KEY), "scale": jnp.float32(s)}
    (start, end, losses), (base_start, base_end, base_losses) = run(config)
    _assert_close(s * np.asarray(start), base_start)
    _assert_close(s * np.asarray(end), base_end)
    _assert_close(losses, base_losses)
    a, c = (np.asarray(config["base"][name]) for name in ("curvature", "minimum"))
    closed = c + (1 - lr * s**2 * a) ** steps * (np.asarray(base_start) - c)
    _assert_close(s * np.asarray(end), closed, rtol=1e-4)


def test_reparametrize_keeps_normalize_data_and_name():
    base = tasks.image_mlp([DARK], (3,), batch_size=8)
    family = tasks.reparametrize(base, "tensor")
    assert family.data is base.data and family.name == "mlp3/reparam-tensor"
    config = family.sample(KEY)
    assert float(family.task(config, family.data).normalize(99.0)) < 4


def test_reparametrize_names_the_known_levels():
    with pytest.raises(ValueError, match=r"'layer'.*'global', 'tensor', 'parameter'"):
        tasks.reparametrize(_COUNTED, "layer")


@pytest.mark.parametrize(
    "scale_range", [(0, 1), (-1, 1), (2, 1), (1, math.inf), (math.nan, 1)]
)
def test_reparametrize_refuses_a_range_that_is_not_positive(scale_range):
    with pytest.raises(ValueError, match="0 < low <= high"):
        tasks.reparametrize(_COUNTED, "global", scale_range)


# Models of flax and haiku

_INPUTS = _RNG.normal(size=(100, 6)).astype(np.float32)
SEPARABLE = tasks.from_arrays(
    {"x": _INPUTS, "y": (_INPUTS @ _RNG.normal(size=(6, 3))).argmax(1)}
)
_RATE = 0.2


def _output_loss(logits, batch):
    return tasks.cross_entropy(logits, batch["y"])


class _LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(3)(x)


class _LinenNoisy(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(8)(x))
        x = nn.Dropout(_RATE, deterministic=False)(nn.relu(x))
        return nn.Dense(3)(x)


class _NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


class _NnxNoisy(_NnxMLP):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(_RATE, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def _haiku_mlp(x):
    x = jax.nn.relu(hk.Linear(8)(x))
    return hk.Linear(3)(x)


def _haiku_noisy(x):
    x = hk.BatchNorm(True, True, decay_rate=0.9)(hk.Linear(8)(x), is_training=True)
    return hk.Linear(3)(hk.dropout(hk.next_rng_key(), _RATE, jax.nn.relu(x)))


def _plain_layers(framework, params):
    """The [(w, b), (w, b)] of an MLP."""
    if framework == "haiku":
        return [(params[k]["w"], params[k]["b"]) for k in ("linear", "linear_1")]
    names = {"linen": ("Dense_0", "Dense_1"), "nnx": ("hidden", "out")}[framework]
    layers = [(params[k]["kernel"], params[k]["bias"]) for k in names]
    return [(w[...], b[...]) for w, b in layers]


def _running_mean(framework, state):
    if framework == "linen":
        return state["batch_stats"]["BatchNorm_0"]["mean"]
    if framework == "nnx":
        return state["norm"]["mean"][...]
    return state["batch_norm/~/mean_ema"]["hidden"][0]


class _Adapted(NamedTuple):
    mlp: tasks.TaskFamily
    noisy: tasks.TaskFamily  # the MLP with batch normalisation and dropout


def _adapted(adapter, mlp, noisy):
    return _Adapted(
        *(
            adapter(model, _output_loss, SEPARABLE, batch_size=10)
            for model in [mlp, noisy]
        )
    )


ADAPTED = {
    "linen": _adapted(tasks.from_linen, _LinenMLP(), _LinenNoisy()),
    "nnx": _adapted(tasks.from_nnx, _NnxMLP, _NnxNoisy),
    "haiku": _adapted(
        tasks.from_haiku,
        hk.transform_with_state(_haiku_mlp),
        hk.transform_with_state(_haiku_noisy),
    ),
}


def _task(family):
    return family.task(family.sample(KEY), family.data)


class _Noisy(NamedTuple):
    task: tasks.Task
    loss: Callable  # the task's, compiled
    params: Any
    state: Any
    batch: dict


@functools.cache
def _noisy(framework):
    task = _task(ADAPTED[framework].noisy)
    params, state = jax.jit(task.init)(KEY)
    batch = task.batch(KEY, "train")
    return _Noisy(task, jax.jit(task.loss), params, state, batch)


@functools.cache
def _trained(framework):
    """Two runs of 30 steps of Adam, from two init keys."""
    family = ADAPTED[framework].noisy

    def run(key, data):
        task, tx = family.task((), data), optax.adam(0.03)
        start = inner_init(tx, task, key)
        return start, *unroll(tx, task, start, key, jnp.arange(30))

    return _map(run, (0, None))(KEYS[:2], family.data)


@pytest.mark.parametrize("framework", ADAPTED)
def test_adapted_model_computes_what_plain_jax_does(framework):
    task = _task(ADAPTED[framework].mlp)
    params, state = jax.jit(task.init)(KEY)
    batch = task.batch(KEY, "test")
    layers = _plain_layers(framework, params)
    (w1, b1), (w2, b2) = ((np.asarray(w), np.asarray(b)) for w, b in layers)
    logits = np.maximum(batch["x"] @ w1 + b1, 0) @ w2 + b2
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
    loss, (_, aux) = jax.jit(task.loss)(params, state, KEY, batch)
    _assert_close(loss, -log_p[np.arange(10), np.asarray(batch["y"])].mean())
    assert aux == {} and jax.tree.leaves(state) == []


@pytest.mark.parametrize("framework", ADAPTED)
def test_batch_normalisation_state_is_returned(framework):
    _, loss, params, state, batch = _noisy(framework)
    w, b = map(np.asarray, _plain_layers(framework, params)[0])
    mean = (np.asarray(batch["x"]) @ w + b).mean(0)
    assert np.all(_running_mean(framework, state) == 0)
    _, (new, _) = loss(params, state, KEY, batch)
    _assert_close(_running_mean(framework, new), 0.1 * mean)
    _, (newer, _) = loss(params, new, KEY, batch)
    _assert_close(_running_mean(framework, newer), 0.19 * mean)
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_nnx_loss_leaves_its_arguments_as_they_are():
    task, _, params, state, batch = _noisy("nnx")
    before = jax.tree.map(np.asarray, state["norm"])
    _, (new, _) = task.loss(params, state, KEY, batch)
    _assert_close(state["norm"], before, rtol=0, atol=0)
    assert _differ(new["norm"], before)


@pytest.mark.parametrize("framework", ["linen", "haiku"])
def test_dropout_follows_the_key_of_the_loss(framework):
    _, loss, params, state, batch = _noisy(framework)
    losses = [float(loss(params, state, key, batch)[0]) for key in KEYS[:3]]
    assert len(set(losses)) == 3
    assert losses[0] == loss(params, state, KEYS[0], batch)[0]


def test_nnx_dropout_follows_the_stream_in_the_model_state():
    task, loss, params, state, batch = _noisy("nnx")
    first, (second_state, _) = loss(params, state, KEYS[0], batch)
    assert first == loss(params, state, KEYS[1], batch)[0]
    # Batch statistics do not enter the training loss, so the masks must differ.
    assert first != loss(params, second_state, KEYS[0], batch)[0]
    _, other_state = task.init(KEYS[0])
    assert first != loss(params, other_state, KEYS[0], batch)[0]


@pytest.mark.parametrize("framework", ADAPTED)
def test_thirty_steps_of_adam_lower_an_adapted_models_loss(framework):
    start, end, losses = _trained(framework)
    assert losses.shape == (2, 30)
    assert np.all(losses[:, -5:].mean(1) < 0.75 * losses[:, :3].mean(1))
    first, second = _running_mean_of_runs(framework, end.model_state)
    assert np.all(first != 0) and np.all(second != 0) and np.all(first != second)
    assert _differ(start.params, end.params)


def _running_mean_of_runs(framework, state):
    return [
        np.asarray(_running_mean(framework, jax.tree.map(lambda x, i=i: x[i], state)))
        for i in range(2)
    ]


@pytest.mark.parametrize("framework", ADAPTED)
def test_adapted_initialisation_vmaps_over_keys(framework):
    family = ADAPTED[framework].noisy
    start, _, _ = _trained(framework)
    single = jax.jit(family.task((), family.data).init)(KEYS[1])
    _assert_close(
        _plain_layers(framework, jax.tree.map(lambda x: x[1], start.params)),
        _plain_layers(framework, single[0]),
    )
    first, second = (
        _plain_layers(framework, jax.tree.map(lambda x, i=i: x[i], start.params))
        for i in range(2)
    )
    assert np.all(first[0][0] != second[0][0])


def test_pes_carries_an_nnx_models_random_streams():
    estimator = pes(
        l2o.learnable_sgd(),
        ADAPTED["nnx"].noisy,
        constant(4),
        particles=2,
        truncation=2,
    )
    theta = l2o.learnable_sgd().init_theta(KEY)
    state = estimator.init(KEY, theta)
    estimate = jax.jit(estimator.estimate)
    counts = []
    for key in KEYS[:3]:
        gradient, state, info = estimate(key, theta, state, ADAPTED["nnx"].noisy.data)
        counts.append(
            np.asarray(state.inner.model_state["dropout"]["rngs"]["count"][...])
        )
        assert info.nonfinite == 0 and info.inner_steps == 2 * 2 * 2
        assert np.all([np.isfinite(g).all() for g in jax.tree.leaves(gradient)])
    # Two draws per window, and the third window begins new episodes.
    steps = [np.unique(count - counts[0]).tolist() for count in counts]
    assert steps == [[0], [2], [0]]


def test_reparametrize_passes_an_adapted_models_state_on():
    base = ADAPTED["linen"].noisy
    family = tasks.reparametrize(base, "tensor", (0.1, 10.0))
    values = [
        jax.jit(
            lambda task=task: task.loss(*task.init(KEY), KEY, _noisy("linen").batch)
        )()
        for task in (_task(base), _task(family))
    ]
    _assert_close(values[0], values[1], rtol=1e-4)


# Held-out tasks


class _HeldOut:
    def __init__(self, name):
        self.family = tasks.make_family(name)

        @jax.jit
        def run(data):
            task, tx = self.family.task((), data), optax.adam(0.01)
            start = inner_init(tx, task, KEY)
            batch = task.batch(KEYS[0], "outer_valid")
            end, losses = unroll(tx, task, start, KEY, jnp.arange(20))
            before, after = (
                task.loss(s.params, s.model_state, KEY, batch)[0] for s in (start, end)
            )
            return before, after, losses, task.normalize(jnp.inf)

        self.before, self.after, self.losses, self.maximum = map(
            np.asarray, run(self.family.data)
        )


@pytest.fixture(scope="module", params=HELDOUT)
def heldout(request):
    return _HeldOut(request.param)


def test_heldout_loss_begins_near_that_of_guessing_and_falls(heldout):
    low, high = {
        "deep_mlp": (0.8 * math.log(10), 1.5 * math.log(10)),
        "conv": (0.8 * math.log(10), 1.2 * math.log(10)),
        "autoencoder": (0.01, 0.3),
        "transformer_lm": (0.9 * math.log(128), 1.2 * math.log(128)),
    }[heldout.family.name]
    assert low < heldout.before < high
    assert np.all(np.isfinite(heldout.losses))
    assert heldout.losses[-3:].mean() < heldout.losses[:3].mean()
    assert heldout.after < 0.95 * heldout.before


def test_heldout_meta_loss_is_bounded_as_documented(heldout):
    expected = {
        "deep_mlp": 1.5 * math.log(10),
        "conv": 1.5 * math.log(10),
        "autoencoder": 1.0,
        "transformer_lm": 1.5 * math.log(128),
    }[heldout.family.name]
    np.testing.assert_allclose(heldout.maximum, expected, rtol=1e-6)


def test_transformer_sees_earlier_tokens_only_and_their_positions():
    module = _heldout._Transformer(width=8, heads=2, layers=1)
    tokens = jnp.full((1, 6), ord("a"))
    params = jax.jit(module.init)(KEY, tokens)
    apply = jax.jit(module.apply)
    logits = np.asarray(apply(params, tokens))
    assert logits.shape == (1, 6, 128)
    assert np.all(np.std(logits[0], 0) > 0)
    for changed in range(6):
        other = apply(params, tokens.at[0, changed].set(ord("b")))
        np.testing.assert_array_equal(other[:, :changed], logits[:, :changed])
        assert np.all(np.any(other[0, changed:] != logits[0, changed:], -1))


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv3x3_is_a_convolution_padded_by_one(size, stride):
    x = jax.random.normal(KEY, (2, *size, 3))
    module = _heldout._Conv3x3(channels=4, stride=stride)
    same = nn.Conv(4, (3, 3), stride, padding="SAME")

    @jax.jit
    def run():
        kernel = module.init(KEYS[0], x)["params"]["kernel"]
        params = {"kernel": kernel, "bias": jnp.arange(4.0)}
        reference = params["bias"] + jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return *(m.apply({"params": params}, x) for m in (module, same)), reference

    out, same_out, reference = map(np.asarray, run())
    np.testing.assert_allclose(out, reference, rtol=1e-5, atol=1e-5)
    assert same_out.shape == out.shape
    # "SAME" pads an even side by (0, 1) under stride 2; odd sides by (1, 1).
    agrees = stride == 1 or all(n % 2 for n in size)
    assert np.allclose(out, same_out, rtol=1e-5, atol=1e-5) == agrees


def test_conv3x3_begins_as_flaxs_convolution_does():
    x = jnp.zeros((1, 4, 4, 32))
    ours, flaxs = (
        jax.jit(module.init)(KEY, x)["params"]
        for module in (_heldout._Conv3x3(channels=64, stride=1), nn.Conv(64, (3, 3)))
    )
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, flaxs)
    np.testing.assert_allclose(ours["kernel"].std(), flaxs["kernel"].std(), rtol=0.03)
    assert np.all(ours["bias"] == 0)


# The registry


def test_make_family_names_the_known_families():
    with pytest.raises(ValueError, match="'mpl32'; known: " + ", ".join(FAMILIES)):
        tasks.make_family("mpl32")


def test_heldout_tasks_are_registered():
    assert set(HELDOUT) < set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_registered_family_keeps_the_contract(name):
    family = tasks.make_family(name)
    assert family.name == name

    def one(key, data, split):
        task = family.task(family.sample(key), data)
        params, state = task.init(key)
        batch = task.batch(key, split)
        loss, (new_state, aux) = task.loss(params, state, key, batch)
        return params, (state, new_state), batch, loss, task.normalize(loss), aux

    batches = []
    for split in SPLITS:
        params, (state, new_state), batch, loss, normalized, aux = jax.eval_shape(
            lambda key, data, split=split: one(key, data, split), KEY, family.data
        )
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
        assert loss.shape == normalized.shape == ()
        assert loss.dtype == normalized.dtype == jnp.float32
        assert jax.tree.structure(state) == jax.tree.structure(new_state)
        assert all(x.shape == () for x in aux.values())
        batches.append(batch)
    assert all(batch == batches[0] for batch in batches)
    shapes = jax.eval_shape(
        jax.vmap(lambda key: one(key, family.data, "train")), KEYS[:3]
    )
    assert all(x.shape[0] == 3 for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", FAMILIES)
def test_registered_family_compiles_no_dataset_in(name):
    family = tasks.reparametrize(tasks.make_family(name), "tensor")

    def one(key, data):
        task = family.task(family.sample(key), data)
        return task.loss(*task.init(key), key, task.batch(key, "train"))

    constants = jax.make_jaxpr(one)(KEY, family.data).consts
    assert sum(np.size(x) for x in constants) < 100


# Documentation

MODULES = [
    f"l2o.tasks.{module.name}" for module in pkgutil.iter_modules(tasks.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_every_maker_of_a_family_has_an_example():
    makers = ["from_arrays", "from_haiku", "from_linen", "from_nnx", "image_mlp"]
    makers += ["make_family", "quadratic", "reparametrize", "stateless"]
    for name in makers:
        assert ">>> " in inspect.getdoc(getattr(tasks, name)), name
