"""Augmentations: each against its formula; all of them under vmap, and together."""

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
from helpers import (
    DARK,
    ERRORS,
    KEY,
    KEYS,
    assert_close,
    assert_log_uniform,
    differ,
    mapped,
)

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
    nan_gradient,
    normalized_gradient,
    random_directions,
    reduced_batch,
    reduced_precision,
    scaled_loss,
    truncated_data,
    velo_augmentations,
)

BATCH, DIM = 12, 3
CURVATURE = np.array([1.0, 0.3, 0.1], np.float32)

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


def _regression_loss(target, data):
    def loss(params, state, key, batch):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"] - target
        aux = {"drawn": jax.random.uniform(key)}
        state = {"step": state["step"] + 1, "mean": jnp.mean(batch["x"])}
        return 0.5 * jnp.mean(error**2), (state, aux)

    del data
    return loss


# Batches of examples, two tensors, a state, aux, a key, a bound and an optimum.
REGRESSION = tasks.TaskFamily(
    sample=lambda key: {"target": jax.random.normal(key)},
    task=lambda config, data: tasks.Task(
        init=lambda key: (
            {"w": jax.random.normal(key, (DIM,)), "b": jnp.ones(())},
            {"step": jnp.zeros((), int), "mean": jnp.zeros(())},
        ),
        batch=lambda key, split: {
            "x": jax.random.normal(key, (BATCH, DIM)),
            "y": jnp.arange(BATCH) % 3,
        },
        loss=_regression_loss(config["target"], data),
        normalize=tasks.clipped(1.0),
    ),
    data=DARK,
    name="regression",
    optimum=lambda config, data: config["target"],
)


def _of_one_size(config, data):
    def loss(x, key, batch):
        return jnp.sum(x * batch["x"].reshape(BATCH, DIM))

    task = REGRESSION.task(config, data)
    return tasks.stateless(lambda key: jnp.ones(()), task.batch, loss)


OF_ONE_SIZE = REGRESSION._replace(task=_of_one_size)
UNLABELLED = tasks.from_arrays({"x": np.zeros((20, 2))})


# f(x) = 1/2 sum a x^2, whose batches do nothing.
BOWL = tasks.TaskFamily(
    sample=lambda key: (),
    task=lambda config, data: tasks.stateless(
        init=lambda key: jnp.array([1.0, -2.0, 3.0]),
        batch=lambda key, split: jnp.zeros((2, 2)),
        loss=lambda x, key, batch: 0.5 * jnp.sum(CURVATURE * x**2),
    ),
    name="bowl",
)
START = np.array([1.0, -2.0, 3.0], np.float32)
SLOPE = CURVATURE * START


def _augmented(name, options, base=REGRESSION):
    return Augmentation(name, options)(base)


def _value_and_grad(family):
    """`(config, key) -> ((loss, (state, aux)), gradient)` at the start."""

    def evaluate(config, key):
        task = family.task(config, family.data)
        params, state = task.init(KEY)
        batch = task.batch(key, "train")
        return jax.value_and_grad(task.loss, has_aux=True)(params, state, key, batch)

    return evaluate


def _entry(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def _first(tree, n):
    return jax.tree.map(lambda x: x[:n], tree)


def _repeated(tree, times):
    return jax.tree.map(lambda x: np.tile(x, (times,) + (1,) * (x.ndim - 1)), tree)


def _gradients(family, config=None):
    """Of the bowl at its start, for 2000 keys: (2000, 3)."""
    config = family.sample(KEY) if config is None else config
    evaluate = _value_and_grad(family)
    return np.asarray(mapped(lambda key: evaluate(config, key)[1])(KEYS), np.float64)


def _assert_mean(draws, expected):
    error = draws.std(0) / math.sqrt(len(draws))
    assert np.all(abs(draws.mean(0) - expected) < ERRORS * error)


def _assert_variance(draws, expected):
    squares = (draws - draws.mean(0)) ** 2
    _assert_mean(squares, expected)


# All of them.


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
            name: _value_and_grad(_families()[name])(config, KEY)
            for name, config in configs.items()
        }

    one = jax.jit(evaluate)
    rich = {name: x for name, x in _configs().items() if name.endswith("1")}
    alone = [one(_entry(rich, i)) for i in range(3)]
    return mapped(evaluate)(_first(_configs(), 3)), alone


@pytest.mark.parametrize("name", EXAMPLES)
def test_augmentations_leave_everything_else_to_the_family(name):
    for i, options in enumerate(EXAMPLES[name]):
        family, config = _families()[f"{name} {i}"], _configs()[f"{name} {i}"]
        assert family.data is REGRESSION.data
        assert family.name.startswith("regression/")
        assert_close(config["base"], _configs()["base"], rtol=0, atol=0)
        if name != "scaled_loss":
            assert family.optimum(config, family.data) is config["base"]["target"]
        task = family.task(_entry(config, 0), family.data)
        assert float(task.normalize(7e6)) == 1
        without = _augmented(name, options, REGRESSION._replace(optimum=None))
        assert without.optimum is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_augmentations_under_vmap_are_those_of_single_tasks(name):
    together, alone = _all_at_once()
    tol = 1e-2 if name == "reduced_precision" else 1e-4
    for task, one in enumerate(alone):
        of_many = _entry(together[f"{name} 1"], task)
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
        _assert_mean(x, 0.45)
        _assert_variance(x, 0.25 / 12)
    for name in ("count", "delay"):
        counts = np.bincount(drawn[name].astype(int), minlength=8)
        assert len(counts) == 8 and counts[0] == 0
        p = np.log((np.arange(1, 8) + 1) / np.arange(1, 8)) / np.log(8)
        error = np.sqrt(p * (1 - p) / len(KEYS))
        assert np.all(abs(counts[1:] / len(KEYS) - p) < ERRORS * error)
    correlation = np.corrcoef(np.stack(list(drawn.values()))) - np.eye(7)
    assert abs(correlation).max() < 5 / math.sqrt(len(KEYS))


def test_hazards_of_gradients_and_losses():
    broken, scaled = nan_gradient(BOWL, 0.25), scaled_loss(BOWL, 1e3)

    def gradient(family):
        task = family.task(family.sample(KEY), family.data)
        x = task.init(KEY)[0]

        def one(key):
            def loss(x):
                return task.loss(x, (), key, task.batch(KEY, "train"))[0]

            return jax.value_and_grad(loss)(x)

        return jax.vmap(one)(jax.random.split(KEY, 4000)), task

    (value, true), plain = gradient(BOWL)
    (kept, found), _ = gradient(broken)
    assert_close(kept, value)
    bad = np.isnan(found).reshape(4000, -1)
    assert np.all(bad.all(1) == bad.any(1))  # all of a step's or none
    assert_close(np.asarray(found)[~bad[:, 0]], np.asarray(true)[~bad[:, 0]])
    assert abs(bad[:, 0].mean() - 0.25) < ERRORS * np.sqrt(0.25 * 0.75 / 4000)
    (larger, steeper), task = gradient(scaled)
    assert_close(larger, 1e3 * value)
    assert_close(steeper, 1e3 * true)
    assert_close(task.normalize(larger[0]), plain.normalize(value[0]))
    larger = scaled_loss(REGRESSION, 1e3)
    config = larger.sample(KEY)
    optimum = larger.optimum(config, larger.data)
    assert_close(optimum, 1e3 * config["base"]["target"])


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


# Another gradient than the value's.


def test_with_gradient_is_a_function_of_the_parameters_to_the_next_derivative():
    family = normalized_gradient(BOWL)
    task = family.task(family.sample(KEY), ())

    def loss(x):
        return task.loss(x, (), KEY, None)[0]

    @jax.jit
    def derivatives(x):
        grad = jax.grad(loss)
        return {
            "value": loss(x),
            "grad": grad(x),
            "tangent": jax.jvp(loss, (x,), (x,))[1],
            "reverse": jax.jacrev(grad)(x),
            "forward": jax.jacfwd(grad)(x),
            "at zero": (grad(jnp.zeros(3)), jax.jacrev(grad)(jnp.zeros(3))),
        }

    found = derivatives(START)
    size = np.linalg.norm(SLOPE)
    hessian = np.diag(CURVATURE) / size
    hessian = hessian - np.outer(SLOPE, SLOPE * CURVATURE) / size**3
    assert_close(found["value"], 0.5 * np.sum(CURVATURE * START**2))
    assert_close(found["grad"], SLOPE / size)
    assert_close(found["tangent"], SLOPE @ START / size)
    assert_close(found["reverse"], hessian)
    assert_close(found["forward"], hessian)
    assert np.all(np.asarray(found["at zero"][0]) == 0)
    assert np.all(np.isfinite(found["at zero"][1]))


@functools.cache
def _meta_gradient():
    """Of five steps of SGD, by backpropagation and by central differences."""
    families = {
        "normalized_gradient": normalized_gradient(BOWL),
        "random_directions": random_directions(BOWL, 3),
        "es_gradient": es_gradient(BOWL, 0.5, pairs=2),
        "delayed_gradient": delayed_gradient(BOWL, (2, 3)),
    }

    def meta_loss(log_lr, family):
        task, tx = family.task(family.sample(KEY), ()), optax.sgd(jnp.exp(log_lr))
        start = inner_init(tx, task, KEY)
        return jnp.mean(unroll(tx, task, start, KEY, jnp.arange(5))[1])

    @jax.jit
    def both(x, h):
        found = {}
        for name, family in families.items():
            f = functools.partial(meta_loss, family=family)
            central = (f(x + h) - f(x - h)) / (2 * h)
            found[name] = (jax.grad(f)(x), jax.jvp(f, (x,), (1.0,))[1], central)
        return found

    return both(jnp.log(0.3), 0.02)


@pytest.mark.parametrize(
    "name",
    ["normalized_gradient", "random_directions", "es_gradient", "delayed_gradient"],
)
def test_backpropagation_through_training_sees_the_changed_gradients(name):
    reverse, forward, central = _meta_gradient()[name]
    assert abs(central) > 0.01
    assert_close(reverse, forward, rtol=1e-4)
    assert_close(reverse, central, rtol=2e-3)


def test_a_drawn_number_of_directions_has_forward_derivatives_only():
    family = random_directions(BOWL, (2, 4))

    @jax.jit
    def grad(x, config):
        task = family.task(config, ())
        return jnp.sum(jax.grad(lambda x: task.loss(x, (), KEY, None)[0])(x))

    config = family.sample(KEY)
    assert np.isfinite(jax.jvp(lambda x: grad(x, config), (START,), (START,))[1])
    with pytest.raises(ValueError, match="[Rr]everse"):
        jax.grad(grad)(START, config)


def test_changing_a_gradient_costs_no_second_one():
    # Large enough a model that its own operations are what counts.
    base = tasks.image_mlp(["digits"], (32,), batch_size=64)

    def flops(family):
        f = jax.jit(_value_and_grad(family))
        cost = f.lower(family.sample(KEY), KEY).compile().cost_analysis()
        return cost["flops"]

    assert flops(normalized_gradient(base)) < 1.1 * flops(base)


# Each of them.


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


@pytest.mark.parametrize("relative", [True, False])
def test_gradient_noise_has_the_documented_size(relative):
    draws = _gradients(gradient_noise(BOWL, 0.3, relative))
    scale = np.sqrt(np.mean(SLOPE**2)) if relative else 1
    _assert_mean(draws, SLOPE)
    _assert_variance(draws, (0.3 * scale) ** 2)
    correlation = np.corrcoef(draws.T) - np.eye(3)
    assert abs(correlation).max() < ERRORS / math.sqrt(len(KEYS))


def test_random_directions_keep_the_gradient_on_average():
    _assert_mean(_gradients(random_directions(BOWL, 3)), SLOPE)
    one = _gradients(random_directions(BOWL, 1))
    _assert_mean(one, SLOPE / 3)
    # u <u, g> of a unit u: its square is its product with g.
    assert_close(np.sum(one**2, 1), one @ SLOPE, rtol=1e-4)


def test_the_number_of_directions_may_be_traced():
    family = random_directions(BOWL, (1, 9))
    evaluate = mapped(_value_and_grad(family), (0, None))
    configs = {"base": (), "count": jnp.array([1, 3])}
    found = evaluate(configs, KEY)[1]
    for gradient, count in zip(found, (1, 3)):
        static = random_directions(BOWL, count)
        expected = jax.jit(_value_and_grad(static))(static.sample(KEY), KEY)[1]
        assert_close(gradient, expected)


def test_signs_of_directions_are_unit_vectors_that_point_uphill():
    one = _gradients(random_directions(BOWL, 1, sign=True))
    assert_close(np.linalg.norm(one, axis=1), 1.0)
    assert np.all(one @ SLOPE > 0)
    # On a sphere in three dimensions |<u, g>| / |g| is uniform on (0, 1).
    _assert_mean(one @ SLOPE / np.linalg.norm(SLOPE), 1 / 2)


@pytest.mark.parametrize("pairs", [1, 4])
def test_es_gradient_of_a_quadratic_has_mean_and_variance_of_the_formula(pairs):
    draws = _gradients(es_gradient(BOWL, 0.5, pairs))
    _assert_mean(draws, SLOPE)
    _assert_variance(draws, (np.sum(SLOPE**2) + SLOPE**2) / pairs)


def test_es_gradient_smooths_a_loss_with_its_std():
    # d/dx E (x + s e)^4 = 4 x^3 + 12 x s^2.
    quartic = BOWL._replace(
        task=lambda config, data: tasks.stateless(
            init=lambda key: jnp.float32(2.0),
            batch=lambda key, split: jnp.zeros((2, 2)),
            loss=lambda x, key, batch: x**4,
        )
    )
    family = es_gradient(quartic, (0.1, 1.0))
    for std in (0.1, 1.0):
        draws = _gradients(family, {"base": (), "std": jnp.float32(std)})
        _assert_mean(draws, 32 + 24 * std**2)


def _numpy_sgd(delay, lr, steps):
    past, losses = [START.astype(np.float64)], []
    for t in range(steps):
        old = past[max(0, t - delay)]
        losses.append(0.5 * np.sum(CURVATURE * old**2))
        past.append(past[-1] - lr * CURVATURE * old)
    return past[-1], losses


def _sgd(family, config, lr=0.3, steps=9):
    task, tx = family.task(config, ()), optax.sgd(lr)
    start = inner_init(tx, task, KEY)
    end, losses = unroll(tx, task, start, KEY, jnp.arange(steps))
    return end.params, losses


def test_delayed_gradients_are_those_of_earlier_parameters():
    delays = jnp.arange(1, 5)
    family = delayed_gradient(BOWL, (1, 5))
    run = mapped(lambda d: _sgd(family, {"base": (), "delay": d}))
    for delay, *found in zip(delays, *run(delays)):
        end, losses = _numpy_sgd(int(delay), 0.3, 9)
        assert_close(found, [end, losses])


def test_a_fixed_delay_is_that_of_the_range():
    family = delayed_gradient(BOWL, 3)
    found = jax.jit(lambda: _sgd(family, family.sample(KEY)))()
    assert_close(found, _numpy_sgd(3, 0.3, 9))


def test_reduced_batch_is_the_first_examples():
    half = reduced_batch(REGRESSION, 0.5)
    few = reduced_batch(REGRESSION, 0.0)
    config = half.sample(KEY)
    whole = REGRESSION.task(config["base"], None).batch(KEY, "train")
    found = half.task(config, None).batch(KEY, "train")
    assert_close(found, _first(whole, 6), rtol=0, atol=0)
    found = few.task(config, None).batch(KEY, "train")
    assert_close(found, _first(whole, 1), rtol=0, atol=0)


def test_a_drawn_fraction_of_a_batch_has_the_mean_of_its_first_examples():
    family = reduced_batch(REGRESSION, (0.0, 1.0))
    base = REGRESSION.sample(KEY)
    # Of 12 examples: 5 are rounded down to 4, 11 to 6.
    fractions = [0.0, 0.1, 0.26, 0.45, 0.5, 0.95, 1.0]
    kept = [1, 1, 3, 4, 6, 6, 12]

    def evaluate(fraction):
        task = family.task({"base": base, "fraction": fraction}, None)
        params, state = task.init(KEY)
        batch = task.batch(KEY, "train")
        return batch, jax.value_and_grad(task.loss, has_aux=True)(
            params, state, KEY, batch
        )

    batches, ((losses, _), gradients) = mapped(evaluate)(jnp.array(fractions))
    task = REGRESSION.task(base, None)
    params, state = task.init(KEY)
    whole = task.batch(KEY, "train")
    f = jax.value_and_grad(task.loss, has_aux=True)
    for i, n in enumerate(kept):
        first = _first(whole, n)
        found = _entry((batches, losses, gradients), i)
        (loss, _), gradient = f(params, state, KEY, first)
        assert_close(found, (_repeated(first, BATCH // n), loss, gradient))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_rounds_parameters_and_batches(dtype):
    family = reduced_precision(REGRESSION, dtype)
    config = family.sample(KEY)
    task, base = (
        f.task(c, None) for f, c in ((family, config), (REGRESSION, config["base"]))
    )
    (params, state), (full, _) = task.init(KEY), base.init(KEY)
    low = jnp.dtype(dtype)
    assert {x.dtype for x in jax.tree.leaves(params)} == {low}
    assert_close(params, jax.tree.map(lambda x: x.astype(low), full), rtol=0, atol=0)
    batch, whole = task.batch(KEY, "train"), base.batch(KEY, "train")
    assert_close(batch["x"], whole["x"].astype(low), rtol=0, atol=0)
    assert batch["x"].dtype == low and batch["y"].dtype == whole["y"].dtype
    assert state["mean"].dtype == jnp.float32


def test_reduced_precision_trains_in_its_dtypes_from_step_to_step():
    family = reduced_precision(REGRESSION)
    tx = optax.adam(0.05)

    @jax.jit
    def run():
        task = family.task(family.sample(KEY), family.data)
        start = inner_init(tx, task, KEY)
        return start, unroll(tx, task, start, KEY, jnp.arange(60))

    start, (end, losses) = run()
    dtypes = lambda state: jax.tree.map(lambda x: x.dtype, state)
    assert dtypes(start) == dtypes(end) and end.model_state["step"] == 60
    assert end.opt_state[0].mu["w"].dtype == jnp.bfloat16
    assert losses.dtype == jnp.float32 and losses[-5:].mean() < losses[:5].mean()
    assert not np.array_equal(losses, losses.astype(jnp.bfloat16))


# Every example tells its place: x is its number in the training split.
PLACES = tasks.from_arrays(
    {"x": np.zeros((1000, 1, 1, 1), np.float32), "y": np.arange(1000) % 10}
)
PLACES = PLACES._replace(
    train={**PLACES.train, "x": jnp.arange(700.0).reshape(700, 1, 1, 1)}
)
SEEN = tasks.image_mlp([PLACES], (2,), batch_size=100)


def _drawn(family, config, split="train", draws=40):
    """Places and labels of many batches."""
    task = family.task(config, family.data)
    batches = jax.vmap(lambda key: task.batch(key, split))(KEYS[:draws])
    return batches["x"].reshape(-1).astype(int), batches["y"].reshape(-1)


def test_truncated_data_draws_the_first_examples_only():
    family = truncated_data(SEEN, (0.0, 1.0))
    twice = truncated_data(family, 0.5)
    base = SEEN.sample(KEY)

    def draw(fraction):
        config = {"base": base, "fraction": fraction}
        outer = {"base": config, "fraction": jnp.float32(0.5)}
        return _drawn(family, config)[0], _drawn(twice, outer)[0]

    once, both = mapped(draw)(jnp.array([0.0, 0.1, 0.5, 1.0]))
    for places, n in zip([*once, *both], [1, 70, 350, 700, 1, 35, 175, 350]):
        assert set(np.unique(places)) <= set(range(n))
        assert len(np.unique(places)) > 0.98 * n
    config = truncated_data(SEEN, 0.0).sample(KEY)
    _, labels = _drawn(family, config, "inner_valid")
    assert len(np.unique(labels)) == 10


def test_label_noise_is_the_same_in_every_draw_and_has_its_share():
    truth = np.asarray(PLACES.train["y"])
    families = {
        "one": label_noise(SEEN, 0.3),
        "composed": truncated_data(label_noise(truncated_data(SEEN, 0.5), 0.3), 0.9),
        "twice": label_noise(label_noise(SEEN, 0.3), 0.3),
    }

    @jax.jit
    def draw(key):
        return {
            name: _drawn(f, f.sample(key), draws=60) for name, f in families.items()
        }

    seen = {name: [] for name in families}
    for key in KEYS[:4]:
        first = draw(key)
        for name, (places, labels) in first.items():
            table = np.full(700, -1)
            table[places] = labels
            assert np.array_equal(table[places], labels)  # one label per example
            seen[name].append(table)
    assert_close(draw(KEYS[3]), first, rtol=0, atol=0)
    assert differ(seen["one"][0], seen["one"][1])
    assert max(np.flatnonzero(table >= 0).max() for table in seen["composed"]) == 314
    # The other label is any example's, so it may be the right one.
    other = 1 - np.sum((np.bincount(truth) / 700) ** 2)
    for name, p in {"one": 0.3, "composed": 0.3, "twice": 0.51}.items():
        wrong = np.concatenate([(t != truth)[t >= 0] for t in seen[name]])
        share = p * other
        error = math.sqrt(share * (1 - share) / len(wrong))
        assert abs(wrong.mean() - share) <= ERRORS * error
    config = families["one"].sample(KEY)
    clean = _drawn(SEEN, config["base"], "test", 3)
    assert_close(_drawn(families["one"], config, "test", 3), clean, rtol=0, atol=0)


# Together.


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


ORDER = (
    "reparametrize",
    "es_gradient",
    "reduced_batch",
    "reduced_precision",
    "normalized_gradient",
    "random_directions",
    "delayed_gradient",
)


@functools.cache
def _velo_draws():
    rng = np.random.default_rng(0)
    return [velo_augmentations(rng) for _ in range(2000)]


def _options(name):
    return [dict(a.options) for drawn in _velo_draws() for a in drawn if a.name == name]


def _assert_share(count, total, expected):
    error = math.sqrt(expected * (1 - expected) / total)
    assert abs(count / total - expected) < ERRORS * error


def test_velo_augmentations_come_in_order_and_as_often_as_documented():
    for drawn in _velo_draws():
        places = [ORDER.index(a.name) for a in drawn]
        assert places == sorted(set(places))
    shares = (5 / 7, 0.08, 0.2, 0.2, 0.05, 0.08, 0.05)
    for name, share in zip(ORDER, shares):
        _assert_share(len(_options(name)), 2000, share)


def test_velo_augmentations_have_the_documented_strengths():
    scales = _options("reparametrize")
    for level, share in {"global": 0.4, "tensor": 0.4, "parameter": 0.2}.items():
        found = sum(x["level"] == level for x in scales)
        _assert_share(found, len(scales), share)
    for scale_range in ((1e-3, 1e3), (1e-2, 1e2), (0.1, 10.0)):
        found = sum(x["scale_range"] == scale_range for x in scales)
        _assert_share(found, len(scales), 1 / 3)
    assert {x["pairs"] for x in _options("es_gradient")} == {1, 2, 4, 8, 16}
    assert {x["std"] for x in _options("es_gradient")} == {(1e-3, 0.1)}
    fractions = np.array([x["fraction"] for x in _options("reduced_batch")])
    assert fractions.min() >= 0.01 and fractions.max() <= 1
    _assert_mean(fractions, 0.505)
    counts = np.array([x["count"] for x in _options("random_directions")])
    assert counts.min() >= 1 and counts.max() < 1024
    _assert_share(np.sum(counts < 32), len(counts), 1 / 2)
    signs = [x["sign"] for x in _options("random_directions")]
    _assert_share(sum(signs), len(signs), 1 / 2)
    delays = np.array([x["delay"] for x in _options("delayed_gradient")])
    assert set(delays) <= set(range(1, 7))
    _assert_share(np.sum(delays == 1), len(delays), math.log(3, 8))


def test_velo_augmentations_are_recipes_that_repeat():
    again = np.random.default_rng(0)
    assert [velo_augmentations(again) for _ in range(20)] == _velo_draws()[:20]
    rng = np.random.default_rng(0)
    for drawn in _velo_draws()[:20]:
        spec = TaskSpec("quadratic", {"dim": 3}, drawn)
        assert TaskSpec.from_json(spec.to_json()) == spec
        kept = tuple(a for a in drawn if a.name != "reduced_batch")
        assert velo_augmentations(rng, smaller_batches=False) == kept


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cartpole", {"steps": 5, "episodes": 2, "pairs": 1}),
        ("matmul_algorithm", {}),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_few_bits_where_a_loop_or_a_decomposition_is(kind, options, dtype):
    family = tasks.reduced_precision(tasks.make_family(kind, **options), dtype)

    def gradient():
        task = family.task(family.sample(KEY), family.data)
        params, state = task.init(KEY)
        batch = task.batch(KEY, "train")
        return jax.grad(task.loss, has_aux=True)(params, state, KEY, batch)[0]

    found = jax.jit(gradient).lower().out_info
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {dtype}


@pytest.mark.parametrize("level", ["global", "tensor", "parameter"])
def test_reparametrisation_keeps_few_bits(level):
    few = tasks.reduced_precision(tasks.quadratic(3))
    family = tasks.reparametrize(few, level)
    task = family.task(family.sample(KEY), family.data)
    params, _ = task.init(KEY)
    assert params.dtype == jnp.bfloat16


@pytest.mark.parametrize("worse", [tasks.truncated_data, tasks.label_noise])
def test_worse_data_of_a_logistic_regression(worse):
    full = tasks.make_family("logistic_regression", dataset="breast_cancer")
    family = worse(full, 0.5)
    task = family.task(family.sample(KEY), family.data)
    with pytest.raises(ValueError, match="need a batch_size"):
        task.batch(KEY, "train")
    with pytest.raises(ValueError, match="have no optimum"):
        family.optimum(family.sample(KEY), family.data)
    family = worse(
        tasks.make_family("logistic_regression", dataset="breast_cancer", batch_size=8),
        0.5,
    )
    task = family.task(family.sample(KEY), family.data)
    assert task.batch(KEY, "test")["labels"].shape == (8,)


def test_two_wrappers_of_one_kind_draw_apart():
    noisy = tasks.gradient_noise(tasks.quadratic(200), 1.0, relative=False)
    twice = tasks.gradient_noise(noisy, 1.0, relative=False)

    def noise(family):
        config = family.sample(KEY)
        task = family.task(config, family.data)
        x = jnp.zeros(200)
        plain = tasks.quadratic(200)
        base = plain.task(plain.sample(KEY), ())

        def gradient(task):
            return jax.grad(lambda x: task.loss(x, (), KEY, jnp.zeros(200))[0])(x)

        return gradient(task) - gradient(base)

    once, both = np.asarray(noise(noisy)), np.asarray(noise(twice))
    # Independent noises add in variance, equal ones would in deviation.
    assert abs(both.var() - 2) < 4 * 2 * math.sqrt(2 / 200)
    assert abs(np.corrcoef(once, both - once)[0, 1]) < 4 / math.sqrt(200)

    scaled = tasks.reparametrize(tasks.reparametrize(tasks.quadratic(2)))
    config = scaled.sample(KEY)
    assert config["scale"] != config["base"]["scale"]
