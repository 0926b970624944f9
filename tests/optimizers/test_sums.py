"""Sums over large tensors are made in parts, with the same values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

import l2o
from l2o._tensors import sums, widened

SHAPES = [(3, 4), (), (7,), (600, 500), (3, 3, 100, 400), (524309,)]


def both(x, y):
    return x * y, jnp.where(y > 0, x, 0.0).astype(jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(shape, dtype):
    x, y = (jnp.asarray(normal(i, {"x": shape})["x"], dtype) for i in range(2))
    found = jax.jit(lambda x, y: sums(both, x, y.astype(jnp.float32)))(x, y)
    x, y = np.float64(x), np.float64(y)
    for total, entries in zip(found, (x * y, np.where(y > 0, x, 0)), strict=True):
        assert total.shape == () and total.dtype == jnp.float32
        error = 1e-6 * np.sum(np.abs(entries)) + 1e-6
        np.testing.assert_allclose(total, np.sum(entries), atol=error)


def test_only_what_is_large_is_cut():
    def program(size):
        x = jax.ShapeDtypeStruct((size,), jnp.float32)
        return jax.jit(lambda x: sums(lambda x: (x * x,), x)).lower(x).as_text()

    assert "while" not in program(2**18)
    assert "while" in program(2**18 + 2)
    assert "while" not in program(524309), "no part of a prime number of entries"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_derivatives_of_parts(dtype):
    x = jnp.asarray(normal(0, {"x": (600, 500)})["x"], dtype)
    cubes = lambda x: sums(lambda x: (x.astype(jnp.float32) ** 3,), x)[0]
    expected = 3 * np.float32(x) ** 2
    backwards, forwards = jax.grad(cubes)(x), jax.jvp(cubes, (x,), (x,))[1]
    rtol = 1e-5 if dtype == jnp.float32 else 0.01
    np.testing.assert_allclose(np.float32(backwards), expected, rtol=rtol)
    along = np.sum(expected * np.float32(x))
    np.testing.assert_allclose(forwards, along, rtol=0.01)


def test_of_some_axes():
    x = jnp.asarray(normal(0, {"x": (2, 3, 4)})["x"])
    (found,) = sums(lambda x: (x * x,), x, axes=(-2, -1))
    np.testing.assert_allclose(found, np.sum(x * x, (1, 2), keepdims=True), rtol=1e-6)


def test_derivatives_of_what_is_stored_in_bfloat16_meet_in_float32():
    stored = jnp.asarray(normal(0, {"x": (600, 500)})["x"], jnp.bfloat16)

    def loss(x):
        wide = widened(x)
        (total,) = sums(lambda x: (1000.3 * x,), wide)
        return total - 1000 * jnp.sum(wide.numbers)

    found = jax.jit(jax.grad(loss))(stored)
    # Of 1000.3 and 1000 in bfloat16 the difference would be zero.
    np.testing.assert_allclose(np.float32(found), 0.3, rtol=0.01)
    np.testing.assert_allclose(
        jax.jit(loss)(stored), 0.3 * np.sum(np.float32(stored)), rtol=0.1
    )


def test_on_a_mesh_of_explicit_axes_nothing_is_cut():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((600, 500)), jax.P(None, "d"))
        (total,) = jax.jit(lambda x: sums(lambda x: (x,), x))(x)
        optimizer = l2o.learnable_muon()
        tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)), num_steps=9)
        updates, _ = jax.jit(tx.update)({"w": x}, jax.jit(tx.init)({"w": x}), {"w": x})
    assert total == 300_000 and jnp.all(updates["w"] != 0)


def test_without_jit_nothing_is_compiled_for_parts():
    x = jnp.ones((600, 500))
    assert not any(
        equation.primitive.name in ("scan", "cond")
        for equation in jax.make_jaxpr(lambda: sums(lambda x: (x,), x))().eqns
    )
