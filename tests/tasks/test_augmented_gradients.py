"""Augmentations of gradients and losses, each against its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from augmented import (
    BOWL,
    CURVATURE,
    REGRESSION,
    assert_mean,
    assert_variance,
    value_and_grad_of,
)
from helpers import ERRORS, KEY, KEYS, assert_close, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import (
    delayed_gradient,
    es_gradient,
    gradient_noise,
    nan_gradient,
    normalized_gradient,
    random_directions,
    scaled_loss,
)

START = np.array([1.0, -2.0, 3.0], np.float32)
SLOPE = CURVATURE * START


def bowl_gradients(family, config=None):
    """Of the bowl at its start, for 2000 keys: (2000, 3)."""
    config = family.sample(KEY) if config is None else config
    evaluate = value_and_grad_of(family)
    return np.asarray(mapped(lambda key: evaluate(config, key)[1])(KEYS), np.float64)


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
        f = jax.jit(value_and_grad_of(family))
        cost = f.lower(family.sample(KEY), KEY).compile().cost_analysis()
        return cost["flops"]

    assert flops(normalized_gradient(base)) < 1.1 * flops(base)


@pytest.mark.parametrize("relative", [True, False])
def test_gradient_noise_has_the_documented_size(relative):
    draws = bowl_gradients(gradient_noise(BOWL, 0.3, relative))
    scale = np.sqrt(np.mean(SLOPE**2)) if relative else 1
    assert_mean(draws, SLOPE)
    assert_variance(draws, (0.3 * scale) ** 2)
    correlation = np.corrcoef(draws.T) - np.eye(3)
    assert abs(correlation).max() < ERRORS / math.sqrt(len(KEYS))


def test_random_directions_keep_the_gradient_on_average():
    assert_mean(bowl_gradients(random_directions(BOWL, 3)), SLOPE)
    one = bowl_gradients(random_directions(BOWL, 1))
    assert_mean(one, SLOPE / 3)
    # u <u, g> of a unit u: its square is its product with g.
    assert_close(np.sum(one**2, 1), one @ SLOPE, rtol=1e-4)


def test_the_number_of_directions_may_be_traced():
    family = random_directions(BOWL, (1, 9))
    evaluate = mapped(value_and_grad_of(family), (0, None))
    configs = {"base": (), "count": jnp.array([1, 3])}
    found = evaluate(configs, KEY)[1]
    for gradient, count in zip(found, (1, 3)):
        static = random_directions(BOWL, count)
        expected = jax.jit(value_and_grad_of(static))(static.sample(KEY), KEY)[1]
        assert_close(gradient, expected)


def test_signs_of_directions_are_unit_vectors_that_point_uphill():
    one = bowl_gradients(random_directions(BOWL, 1, sign=True))
    assert_close(np.linalg.norm(one, axis=1), 1.0)
    assert np.all(one @ SLOPE > 0)
    # On a sphere in three dimensions |<u, g>| / |g| is uniform on (0, 1).
    assert_mean(one @ SLOPE / np.linalg.norm(SLOPE), 1 / 2)


@pytest.mark.parametrize("pairs", [1, 4])
def test_es_gradient_of_a_quadratic_has_mean_and_variance_of_the_formula(pairs):
    draws = bowl_gradients(es_gradient(BOWL, 0.5, pairs))
    assert_mean(draws, SLOPE)
    assert_variance(draws, (np.sum(SLOPE**2) + SLOPE**2) / pairs)


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
        draws = bowl_gradients(family, {"base": (), "std": jnp.float32(std)})
        assert_mean(draws, 32 + 24 * std**2)


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
