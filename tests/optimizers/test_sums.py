"""Sums over large tensors are made in parts, with the same values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

from l2o._tensors import sums

SHAPES = [(3, 4), (), (7,), (300, 500), (3, 3, 100, 200), (131101,)]


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

    assert "while" not in program(2**16)
    assert "while" in program(2**16 + 2)
    assert "while" not in program(131101), "no part of a prime number of entries"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_derivatives_of_parts(dtype):
    x = jnp.asarray(normal(0, {"x": (300, 500)})["x"], dtype)
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
