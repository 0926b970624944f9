"""What a rule does: slices, step sizes and saliency against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.meta_train.evaluation._behaviour import (
    behaviour_figures,
    input_groups,
    saliency,
    slices,
    step_sizes,
)
from l2o.tasks import make_family


def test_sgd_answers_to_the_gradient_in_a_line_and_not_to_the_past():
    found = slices(optax.sgd(0.3))
    keys = jax.random.split(jax.random.key(0), 3)
    others = jnp.sum(jax.random.normal(keys[2], (32, 32)).at[0, 0].set(0.0) ** 2)
    rms = np.sqrt((others + found.x**2) / 1024)
    np.testing.assert_allclose(found.gradient, -found.x / rms, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.momentum, 0.0, atol=1e-7)


def test_momentum_answers_to_the_mean_of_past_gradients():
    found = slices(optax.sgd(1.0, 0.9))
    keys = jax.random.split(jax.random.key(0), 3)
    noise = jax.random.normal(keys[1], (100, 32, 32))
    last = jax.random.normal(keys[2], (32, 32)).at[0, 0].set(0.0)
    weights = 0.9 ** jnp.arange(100, 0, -1)
    trace = jnp.tensordot(weights, noise, 1) + last
    for i in (0, 20, 60):
        biased = trace.at[0, 0].add(found.x[i] * jnp.sum(weights[-30:]))
        expected = -biased[0, 0] / jnp.sqrt(jnp.mean(biased**2))
        np.testing.assert_allclose(found.momentum[i], expected, rtol=1e-4)


def test_steps_of_sgd_go_straight_down():
    family = make_family("quadratic10")
    found = step_sizes(optax.sgd(0.1), family, steps=6)
    np.testing.assert_allclose(found.cosine, 1.0, rtol=1e-5)
    assert found.size.shape == found.relative.shape == (6,)
    twice = step_sizes(optax.sgd(0.2), family, steps=1)
    np.testing.assert_allclose(twice.size, 2 * found.size[:1], rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "rows"),
    [(l2o.small_fc(), 39), (l2o.celo2_base(), None), (l2o.lstm(), 0)],
)
def test_groups_of_inputs_are_all_rows_of_the_first_weights(optimizer, rows):
    theta = optimizer.init_theta(jax.random.key(0))
    groups = input_groups(optimizer, theta)
    every = [row for group in groups.values() for row in group]
    expected = rows if rows is not None else len(theta["nn"]["w0"])
    assert every == list(range(expected))
    if groups:
        assert len(groups["m"]) == 3 and len(groups["g"]) == 1


def test_what_has_no_weight_is_not_missed_and_what_has_all_is():
    optimizer = l2o.small_fc()
    theta = optimizer.init_theta(jax.random.key(1))
    groups = input_groups(optimizer, theta)
    alone = np.zeros_like(theta["nn"]["w0"])
    rows = list(groups["m_norm"])
    alone[rows] = theta["nn"]["w0"][np.array(rows)]
    theta = {**theta, "nn": {**theta["nn"], "w0": jnp.asarray(alone)}}
    found = saliency(optimizer, theta, make_family("quadratic10"), steps=5)
    assert found.keys() == groups.keys()
    assert found.pop("m_norm") > 0.05
    assert not any(found.values())
    assert saliency(l2o.lstm(), {}, make_family("quadratic10"), steps=5) == {}


def test_figures_come_with_words():
    optimizer, theta = l2o.load_unbound("small_fc_digits")
    family = make_family("quadratic10")
    found = behaviour_figures(optimizer, theta, family, steps=5)
    assert len(found) == 3
    for title, figure, words in found:
        assert title and len(words) > 40 and figure.axes
