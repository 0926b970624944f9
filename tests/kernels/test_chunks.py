"""Large tensors are updated chunk by chunk: the same update, with less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_optimizer import ONE_DECAY
from helpers import few, normal

import l2o
from l2o.rule import _rule
from l2o.rule._chunks import CHUNK, cut

SHAPES = {"w": (13, 5), "turned": (4, 30), "conv": (3, 2, 17, 6), "b": (70,)}
OPTIMIZERS = {
    "small_fc": functools.partial(l2o.small_fc, hidden_size=4, **ONE_DECAY),
    "celo2_base": l2o.celo2_base,  # what normalises convolutions block by block
    "celo": l2o.celo,
}


def _update(optimizer, shapes, theta):
    params, grads, old = (normal(i, shapes) for i in range(3))
    with l2o.backend("xla"):
        tx = optimizer.bind(theta, num_steps=10)
        state = tx.init(params)
        update = jax.jit(lambda g, state: tx.update(g, state, params, value=1.0))
        for g in (old, grads):
            updates, state = update(g, state)
    return updates


def _whole_and_in_parts(f, monkeypatch):
    """What f returns, traced with all tensors whole and then in chunks."""
    results = []
    for elements in (None, 20):
        seen = []

        def small(shape, elements=elements, seen=seen):
            seen.append(shape)
            return elements and cut(shape, elements)

        monkeypatch.setattr(_rule, "cut", small)
        results.append(f())
        assert seen
    return results


def _assert_close(x, y):
    scale = np.max(np.abs(x)) + 1e-12
    np.testing.assert_allclose(y / scale, x / scale, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    few(["small_fc", "celo2_base", "celo"], ["small_fc"]),
)
def test_chunks_change_nothing(name, monkeypatch):
    optimizer = OPTIMIZERS[name]()
    theta = optimizer.init_theta(jax.random.key(0))
    update = functools.partial(_update, optimizer, SHAPES, theta)
    jax.tree.map(_assert_close, *_whole_and_in_parts(update, monkeypatch))


def test_the_derivative_passes_through_chunks(monkeypatch):
    optimizer = OPTIMIZERS["small_fc"]()
    theta = optimizer.init_theta(jax.random.key(0))
    weights = normal(3, {"w": SHAPES["w"]})["w"]

    def gradient():
        def loss(theta):
            updates = _update(optimizer, {"w": SHAPES["w"]}, theta)
            return jnp.sum(weights * updates["w"])

        return jax.jit(jax.grad(loss))(theta)

    jax.tree.map(_assert_close, *_whole_and_in_parts(gradient, monkeypatch))


@pytest.mark.parametrize(
    "shape", [(1000, 1000), (7, 3, 300, 200), (2**20,), (2, 2**19)]
)
def test_chunks_cover_the_tensor(shape):
    chunks = cut(shape)
    assert chunks.whole * chunks.size + chunks.rest == shape[chunks.axis]
    assert chunks.rest < chunks.size
    size = np.prod(shape) / shape[chunks.axis] * chunks.size
    assert CHUNK / 2 < size < 2 * CHUNK
    assert cut((CHUNK,)) is None


def test_temporaries_are_of_one_plane():
    optimizer = l2o.small_fc()
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    theta = jax.tree.map(lambda x: jnp.zeros(x.shape), theta)
    params = {"w": jnp.zeros((512, 1024))}
    with l2o.backend("xla"):
        tx = optimizer.bind(theta, num_steps=10)
        state = tx.init(params)

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        step = jax.jit(step, donate_argnums=(0, 1))
        memory = step.lower(params, state, params).compile().memory_analysis()
    # What is left is a chunk of every feature, however large the tensor.
    size = params["w"].size
    assert memory.temp_size_in_bytes < 4.5 * size + 4 * 30 * CHUNK
