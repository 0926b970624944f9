"""Models in flax and haiku as tasks."""

import functools
import operator
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
from helpers import KEY, KEYS, RNG, assert_close, differ, mapped

import l2o
from l2o import tasks
from l2o.meta_train import constant, inner_init, learn_optimizer, pes, unroll


def _at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def _scaled(tree, scale):
    def multiply(x, s):
        x, s = np.asarray(x), np.asarray(s)
        return x * s.reshape(s.shape + (1,) * (x.ndim - s.ndim))

    return jax.tree.map(multiply, tree, scale)


_INPUTS = RNG.normal(size=(100, 6)).astype(np.float32)


SEPARABLE = tasks.from_arrays(
    {"x": _INPUTS, "y": (_INPUTS @ RNG.normal(size=(6, 3))).argmax(1)}
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
        task, tx = family.task({}, data), optax.adam(0.03)
        start = inner_init(tx, task, key)
        return start, *unroll(tx, task, start, key, jnp.arange(30))

    return mapped(run, (0, None))(jnp.stack([KEY, KEYS[1]]), family.data)


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
    assert_close(loss, -log_p[np.arange(10), np.asarray(batch["y"])].mean())
    assert aux == {} and jax.tree.leaves(state) == []


@pytest.mark.parametrize("framework", ADAPTED)
def test_batch_normalisation_state_is_returned(framework):
    _, loss, params, state, batch = _noisy(framework)
    w, b = map(np.asarray, _plain_layers(framework, params)[0])
    mean = (np.asarray(batch["x"]) @ w + b).mean(0)
    assert np.all(_running_mean(framework, state) == 0)
    _, (new, _) = loss(params, state, KEY, batch)
    assert_close(_running_mean(framework, new), 0.1 * mean)
    _, (newer, _) = loss(params, new, KEY, batch)
    assert_close(_running_mean(framework, newer), 0.19 * mean)
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("framework", ADAPTED)
def test_adapted_loss_does_not_write_into_its_arguments(framework):
    task, _, params, state, batch = _noisy(framework)

    def run(params, state):
        before = jax.tree.leaves((params, state))
        _, (new, _) = task.loss(params, state, KEY, batch)
        assert all(map(operator.is_, before, jax.tree.leaves((params, state))))
        return new

    jax.eval_shape(run, params, state)


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
    first, second = (_running_mean(framework, _at(end.model_state, i)) for i in (0, 1))
    assert np.all(first != 0) and np.all(second != 0) and np.all(first != second)
    assert differ(start.params, end.params)


@pytest.mark.parametrize("framework", ADAPTED)
def test_adapted_initialisation_vmaps_over_keys(framework):
    start, _, _ = _trained(framework)
    first, second = _at(start.params, 0), _at(start.params, 1)
    assert_close(first, _noisy(framework).params)
    weights = [_plain_layers(framework, params)[0][0] for params in (first, second)]
    assert np.all(weights[0] != weights[1])


def test_pes_carries_an_nnx_models_random_streams():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.keys = nnx.Variable(jax.random.split(rngs(), 3))
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.out = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            noise = jax.random.normal(self.keys[...][2], x.shape)
            return self.out(self.dropout(x + noise))

    optimizer = l2o.learnable_sgd()
    family = tasks.from_nnx(Model, _output_loss, SEPARABLE, batch_size=10)
    problem = learn_optimizer(optimizer, family)
    estimator = pes(problem, constant(4), particles=2, truncation=2)
    theta = optimizer.init_theta(KEY)
    state = estimator.init(KEY, theta)
    estimate = jax.jit(estimator.estimate)
    draws = []
    for key in KEYS[:3]:
        _, state, info = estimate(key, theta, state, family.data)
        assert info.nonfinite == 0 and info.inner_steps == 2 * 2 * 2
        model = state.runs.inner.model_state
        assert model["keys"][...].shape == (2, 2, 3)
        draws.append(np.unique(model["dropout"]["rngs"]["count"][...]).tolist())
    # Every step draws a mask, and the third window begins new episodes.
    assert draws == [[2], [4], [2]]


def test_reparametrize_passes_an_adapted_models_state_on():
    _, loss, params, state, batch = _noisy("linen")
    family = tasks.reparametrize(ADAPTED["linen"].noisy, "tensor", (0.1, 10.0))
    config = family.sample(KEY)
    scaled = _scaled(params, jax.tree.map(lambda s: 1 / s, config["scale"]))
    task = family.task(config, family.data)
    actual = jax.jit(task.loss)(scaled, state, KEY, batch)
    assert_close(actual, loss(params, state, KEY, batch), rtol=1e-4)
