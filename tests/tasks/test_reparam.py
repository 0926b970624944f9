"""Reparametrisation is a change of variables."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DARK, KEY, KEYS, assert_close, assert_log_uniform, differ, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll

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

    return mapped(evaluate)(KEYS[:3])


def _scaled(tree, scale):
    def multiply(x, s):
        x, s = np.asarray(x), np.asarray(s)
        return x * s.reshape(s.shape + (1,) * (x.ndim - s.ndim))

    return jax.tree.map(multiply, tree, scale)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_parameters_times_scale_are_the_familys(level):
    _, scale, (params, batch, _), (base_params, base_batch, _) = _both_ways(level)
    assert_close(_scaled(params, scale), base_params)
    np.testing.assert_array_equal(batch, base_batch)
    assert differ(params, base_params)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_loss_state_and_aux_are_the_familys(level):
    _, _, (_, _, (value, _)), (_, _, (base_value, _)) = _both_ways(level)
    assert_close(value, base_value)
    assert value[1][1].keys() == {"drawn"}


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_gradient_follows_the_chain_rule(level):
    _, scale, (_, _, (_, grad)), (_, _, (_, base_grad)) = _both_ways(level)
    assert_close(grad, _scaled(base_grad, scale), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrized_config_holds_the_familys_own(level):
    config, _, _, _ = _both_ways(level)
    assert_close(config["base"], mapped(_COUNTED.sample)(KEYS[:3]))
    shapes = jax.tree.map(lambda s: s.shape[1:], config["scale"])
    assert (
        shapes
        == {
            "global": (),
            "tensor": {"a": (), "b": ()},
            "parameter": {"a": (3,), "b": (2, 2)},
        }[level]
    )


@pytest.mark.parametrize("level", LEVELS)
def test_reparametrization_scales_are_independent_and_log_uniform(level):
    family = tasks.reparametrize(_COUNTED, level, (1e-3, 10.0))
    config = mapped(family.sample)(KEYS)
    scales = [np.reshape(s, (len(KEYS), -1)) for s in jax.tree.leaves(config["scale"])]
    scales = np.concatenate(scales, 1)
    assert scales.shape[1] == {"global": 1, "tensor": 2, "parameter": 7}[level]
    assert_log_uniform(scales, 1e-3, 10.0)
    drawn = np.concatenate([np.log(scales), config["base"]["target"]], 1)
    correlation = np.corrcoef(drawn.T) - np.eye(drawn.shape[1])
    # 45 pairs at most: five standard errors where the other checks take four.
    assert abs(correlation).max() < 5 / math.sqrt(len(KEYS))


def test_reparametrization_keeps_its_scale_for_a_task():
    family = tasks.reparametrize(_COUNTED, "parameter", (0.1, 10.0))
    config = family.sample(KEY)
    assert_close(config, family.sample(KEY), rtol=0, atol=0)
    base = _COUNTED.task(config["base"], _COUNTED.data)
    for key in KEYS[:2]:
        scaled = family.task(config, family.data).init(key)[0]
        assert_close(_scaled(scaled, config["scale"]), base.init(key)[0])


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
    assert_close(s * np.asarray(start), base_start)
    assert_close(s * np.asarray(end), base_end)
    assert_close(losses, base_losses)
    a, c = (np.asarray(config["base"][name]) for name in ("curvature", "minimum"))
    closed = c + (1 - lr * s**2 * a) ** steps * (np.asarray(base_start) - c)
    assert_close(s * np.asarray(end), closed, rtol=1e-4)


def test_reparametrize_keeps_normalize_data_and_name():
    base = tasks.image_mlp([DARK], (3,), batch_size=8)
    family = tasks.reparametrize(base, "tensor")
    assert family.data is base.data and family.name == "mlp3/reparam-tensor"
    config = family.sample(KEY)
    assert float(family.task(config, family.data).normalize(99.0)) < 4


def test_reparametrize_names_the_known_levels():
    with pytest.raises(ValueError, match=r"'layer'.*global, tensor, parameter"):
        tasks.reparametrize(_COUNTED, "layer")


@pytest.mark.parametrize(
    "scale_range", [(0, 1), (-1, 1), (2, 1), (1, math.inf), (math.nan, 1)]
)
def test_reparametrize_refuses_a_range_that_is_not_positive(scale_range):
    with pytest.raises(ValueError, match="0 < low <= high"):
        tasks.reparametrize(_COUNTED, "global", scale_range)
