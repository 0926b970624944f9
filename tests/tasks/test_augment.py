"""What all augmentations keep: lists, files, the family's rest, `vmap`, ranges."""

import doctest
import functools
import importlib
import inspect
import math
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from augmented import (
    BATCH,
    BOWL,
    DIM,
    REGRESSION,
    assert_mean,
    assert_variance,
    entry,
    first_of,
    value_and_grad_of,
)
from helpers import ERRORS, KEY, KEYS, assert_close, assert_log_uniform, differ, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import (
    AUGMENTATIONS,
    Augmentation,
    TaskSpec,
    augment,
    delayed_gradient,
    es_gradient,
    gradient_noise,
    label_noise,
    normalized_gradient,
    random_directions,
    reduced_batch,
    reduced_precision,
    truncated_data,
)

# An example of each in its plainest and its richest form.
EXAMPLES = {
    "delayed_gradient": ({"delay": 2}, {"delay": (1, 5)}),
    "es_gradient": ({}, {"std": (0.1, 1.0), "pairs": 2}),
    "gradient_noise": ({"std": 0.1}, {"std": (0.1, 1.0), "relative": False}),
    "label_noise": ({"probability": 0.2}, {"probability": (0.2, 0.4)}),
    "nan_gradient": ({"probability": 0.5}, {"probability": (0.1, 0.5)}),
    "normalized_gradient": ({}, {"eps": 1e-6}),
    "random_directions": ({"count": 2}, {"count": (1, 5), "sign": True}),
    "reduced_batch": ({"fraction": 0.5}, {"fraction": (0.1, 1.0)}),
    "reduced_precision": ({}, {"dtype": "float16"}),
    "reparametrize": ({}, {"level": "tensor", "scale_range": (0.1, 10.0)}),
    "scaled_loss": ({"factor": 100.0}, {"factor": (1e-4, 1e4)}),
    "truncated_data": ({"fraction": 0.5}, {"fraction": (0.1, 1.0)}),
}
BACKWARD = (
    "es_gradient",
    "gradient_noise",
    "normalized_gradient",
    "random_directions",
)


def _of_one_size(config, data):
    def loss(x, key, batch):
        return jnp.sum(x * batch["x"].reshape(BATCH, DIM))

    task = REGRESSION.task(config, data)
    return tasks.stateless(lambda key: jnp.ones(()), task.batch, loss)


OF_ONE_SIZE = REGRESSION._replace(task=_of_one_size)
UNLABELLED = tasks.from_arrays({"x": np.zeros((20, 2))})


def _augmented(name, options, base=REGRESSION):
    return Augmentation(name, options)(base)


def test_every_augmentation_is_listed_and_exported():
    public = {
        name
        for name, f in vars(augment).items()
        if inspect.isfunction(f)
        and next(iter(inspect.signature(f).parameters)) == "family"
    }
    assert public == set(AUGMENTATIONS) == set(EXAMPLES)
    for name in public | {"velo_augmentations"}:
        f = getattr(tasks, name)
        assert f is getattr(augment, name)
        assert "Example:\n      >>>" in f.__doc__ and "Source: " in f.__doc__


@pytest.mark.parametrize(
    "module", [m.name for m in pkgutil.iter_modules(augment.__path__)]
)
def test_augmentations_have_examples_that_run(module):
    module = importlib.import_module(f"{augment.__name__}.{module}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_augmentations_survive_json(name):
    for options in EXAMPLES[name]:
        spec = TaskSpec("quadratic", {"dim": 3}, (Augmentation(name, options),))
        again = TaskSpec.from_json(spec.to_json())
        assert again == spec and again.augmentations[0].options == options


@functools.cache
def _families():
    families = {
        f"{name} {i}": _augmented(name, options)
        for name, both in EXAMPLES.items()
        for i, options in enumerate(both)
    }
    return {"base": REGRESSION, **families}


@functools.cache
def _configs():
    """A hundred of each."""

    def sample(key):
        return {name: family.sample(key) for name, family in _families().items()}

    return mapped(sample)(KEYS[:100])


@functools.cache
def _all_at_once():
    """Values and gradients of all for three tasks; the richest also one by one."""

    def evaluate(configs):
        return {
            name: value_and_grad_of(_families()[name])(config, KEY)
            for name, config in configs.items()
        }

    one = jax.jit(evaluate)
    rich = {name: x for name, x in _configs().items() if name.endswith("1")}
    alone = [one(entry(rich, i)) for i in range(3)]
    return mapped(evaluate)(first_of(_configs(), 3)), alone


@pytest.mark.parametrize("name", EXAMPLES)
def test_augmentations_leave_everything_else_to_the_family(name):
    for i, options in enumerate(EXAMPLES[name]):
        family, config = _families()[f"{name} {i}"], _configs()[f"{name} {i}"]
        assert family.data is REGRESSION.data
        assert family.name.startswith("regression/")
        assert_close(config["base"], _configs()["base"], rtol=0, atol=0)
        if name != "scaled_loss":
            assert family.optimum(config, family.data) is config["base"]["target"]
        task = family.task(entry(config, 0), family.data)
        assert float(task.normalize(7e6)) == 1
        without = _augmented(name, options, REGRESSION._replace(optimum=None))
        assert without.optimum is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_augmentations_under_vmap_are_those_of_single_tasks(name):
    together, alone = _all_at_once()
    tol = 1e-2 if name == "reduced_precision" else 1e-4
    for task, one in enumerate(alone):
        of_many = entry(together[f"{name} 1"], task)
        found, expected = (
            jax.tree.map(np.float32, x) for x in (of_many, one[f"{name} 1"])
        )
        assert_close(found, expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("name", BACKWARD)
def test_gradient_augmentations_leave_loss_state_and_aux(name):
    together, _ = _all_at_once()
    expected, gradient = together["base"]
    for i in range(2):
        value, changed = together[f"{name} {i}"]
        assert_close(value, expected)
        assert differ(changed, gradient)
        assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, gradient)


@pytest.mark.parametrize("name", EXAMPLES)
def test_drawn_strengths_differ_between_tasks_only_where_there_is_a_range(name):
    for i, options in enumerate(EXAMPLES[name]):
        config = _configs()[f"{name} {i}"]
        drawn = {k: x for k, x in config.items() if k not in ("base", "key", "scale")}
        ranges = {k for k, x in options.items() if isinstance(x, tuple)}
        for k, x in drawn.items():
            assert (len(np.unique(x)) > 1) == (k in ranges), k
        assert ranges - {"scale_range"} <= set(drawn)


def test_ranges_are_drawn_as_documented():
    def draw(key):
        return {
            "std": gradient_noise(BOWL, (0.01, 10.0)).sample(key)["std"],
            "es": es_gradient(BOWL, (0.001, 0.1)).sample(key)["std"],
            "fraction": reduced_batch(BOWL, (0.2, 0.7)).sample(key)["fraction"],
            "seen": truncated_data(REGRESSION, (0.2, 0.7)).sample(key)["fraction"],
            "wrong": label_noise(REGRESSION, (0.2, 0.7)).sample(key)["probability"],
            "count": random_directions(BOWL, (1, 8)).sample(key)["count"],
            "delay": delayed_gradient(BOWL, (1, 8)).sample(key)["delay"],
        }

    drawn = jax.tree.map(lambda x: np.asarray(x, np.float64), mapped(draw)(KEYS))
    assert_log_uniform(drawn["std"], 0.01, 10.0)
    assert_log_uniform(drawn["es"], 0.001, 0.1)
    for name in ("fraction", "seen", "wrong"):
        x = drawn[name]
        assert x.min() >= 0.2 and x.max() <= 0.7
        assert_mean(x, 0.45)
        assert_variance(x, 0.25 / 12)
    for name in ("count", "delay"):
        counts = np.bincount(drawn[name].astype(int), minlength=8)
        assert len(counts) == 8 and counts[0] == 0
        p = np.log((np.arange(1, 8) + 1) / np.arange(1, 8)) / np.log(8)
        error = np.sqrt(p * (1 - p) / len(KEYS))
        assert np.all(abs(counts[1:] / len(KEYS) - p) < ERRORS * error)
    correlation = np.corrcoef(np.stack(list(drawn.values()))) - np.eye(7)
    assert abs(correlation).max() < 5 / math.sqrt(len(KEYS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reduced_batch(REGRESSION, 1.5), "fraction must be .* from 0 to 1"),
        (lambda: reduced_batch(REGRESSION, (0.5, 0.1)), "the smaller one first"),
        (lambda: reduced_batch(REGRESSION, (0.1, 0.2, 0.3)), "pair"),
        (lambda: reduced_batch(tasks.quadratic(3), 0.5), "leave it out"),
        (lambda: reduced_batch(OF_ONE_SIZE, 0.5), "of 12 examples and not of 6: give"),
        (lambda: truncated_data(REGRESSION, -0.1), "fraction must be"),
        (lambda: truncated_data(REGRESSION, math.nan), "fraction must be"),
        (lambda: truncated_data(BOWL, 0.5), "'bowl' has none: put a Dataset"),
        (lambda: label_noise(REGRESSION, 2), "probability must be"),
        (lambda: label_noise(BOWL, 0.5), "'bowl' has none: put a Dataset"),
        (
            lambda: label_noise(REGRESSION._replace(data=(UNLABELLED,)), 0.5),
            "datasets with 'y'; one of 'regression' has only x",
        ),
        (lambda: reduced_precision(BOWL, "float32"), "known: bfloat16, float16"),
        (lambda: normalized_gradient(BOWL, 0.0), "eps must be a positive"),
        (lambda: gradient_noise(BOWL, 0.0), "std must be a positive"),
        (lambda: gradient_noise(BOWL, (0.0, 1.0)), "std must be a positive"),
        (lambda: es_gradient(BOWL, (1.0, math.inf)), "std must be a positive"),
        (lambda: es_gradient(BOWL, pairs=0), "pairs must be a whole number >= 1"),
        (lambda: random_directions(BOWL, 0), "count must be a whole number >= 1"),
        (lambda: random_directions(BOWL, 2.5), "count must be a whole number >= 1"),
        (lambda: random_directions(BOWL, (3, 3)), "low < high"),
        (lambda: delayed_gradient(BOWL, 0), "delay must be a whole number >= 1"),
        (lambda: delayed_gradient(BOWL, (2, 1)), "low < high"),
    ],
)
def test_augmentations_refuse_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_normalized_gradient_has_norm_one():
    together, _ = _all_at_once()
    (_, gradient), (_, found) = (
        together["base"],
        together["normalized_gradient 0"],
    )
    size = np.sqrt(
        sum(np.sum(np.reshape(g, (3, -1)) ** 2.0, 1) for g in jax.tree.leaves(gradient))
    )
    assert_close(found["b"], np.asarray(gradient["b"]) / size)
    assert_close(found["w"], np.asarray(gradient["w"]) / size[:, None])


def test_all_augmentations_train_together():
    family = tasks.image_mlp(["digits"], (8,), batch_size=16)
    for name, options in [
        ("truncated_data", {"fraction": (0.1, 1.0)}),
        ("label_noise", {"probability": 0.1}),
        ("reparametrize", {"level": "parameter", "scale_range": (0.1, 10.0)}),
        ("es_gradient", {"std": (0.01, 0.1), "pairs": 2}),
        ("reduced_batch", {"fraction": (0.1, 1.0)}),
        ("reduced_precision", {}),
        ("normalized_gradient", {}),
        ("random_directions", {"count": (1, 5), "sign": True}),
        ("delayed_gradient", {"delay": (1, 4)}),
    ]:
        family = Augmentation(name, options)(family)
    tx = optax.adam(0.01)

    @mapped
    def run(key):
        task = family.task(family.sample(key), family.data)
        start = inner_init(tx, task, key)
        end, losses = unroll(tx, task, start, key, jnp.arange(8))
        return start.params, end.params, losses

    start, end, losses = run(KEYS[:3])
    assert losses.shape == (3, 8) and np.all(np.isfinite(losses))
    for x, y in zip(jax.tree.leaves(start), jax.tree.leaves(end)):
        assert x.dtype == y.dtype == jnp.bfloat16
        assert np.all(np.isfinite(np.asarray(y, np.float32)))
    assert differ(start, end)
