"""Gradients of any size, and half precision: state and updates stay finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_optimizer import RELATIVES, WITH_UNTOUCHED, small
from helpers import normal

import l2o
from l2o._tensors import finite_gradient, gradient_bound, state_dtype, state_zeros

SHAPES = {"matrix": (6, 4), "half": (5, 3), "half_vector": (6,), "one": ()}
SIGNS = (1.0, -1.0, 1.0)
GRADIENTS = {
    "nan": lambda x: jnp.where(x > 0.5, jnp.nan, x),
    "all_nan": lambda x: x * jnp.nan,
    "infinity": lambda x: jnp.where(x > 0.5, jnp.inf, x),
    "all_infinite": lambda x: jnp.copysign(jnp.inf, x),
    "largest": lambda x: jnp.copysign(3e38, x),
    "large": lambda x: jnp.copysign(1e15, x),
    "half_large": lambda x: jnp.copysign(6e4, x),
    "small": lambda x: 1e-30 * x,
    "zero": lambda x: 0 * x,
}
# The compiler's optimisations would take most of the time.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def to_half(tree):
    return {
        k: x.astype(jnp.float16) if k.startswith("half") else x for k, x in tree.items()
    }


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        # Relatives of `celo2_base` and `velo` cut gradients where these do.
        *(
            pytest.param(
                name, None, marks=[pytest.mark.exhaustive] if name in RELATIVES else []
            )
            for name in WITH_UNTOUCHED
        ),
        ("celo2_base", "xla"),
        ("small_fc", "xla"),
    ],
)
def test_updates_and_state_stay_finite(name, backend):
    optimizer = small(name)
    params = to_half(normal(0, SHAPES))

    @quick
    def run(theta, grads):
        tx = optimizer.bind(theta, num_steps=10)

        def step(state, sign):
            given = jax.tree.map(lambda g: (sign * g).astype(g.dtype), grads)
            return tx.update(given, state, params, value=jnp.float32(1.0))[::-1]

        state, updates = jax.lax.scan(step, tx.init(params), jnp.float32(SIGNS))
        return updates, state

    theta = optimizer.init_theta(jax.random.key(0))
    with l2o.backend(backend):
        for kind, changed in GRADIENTS.items():
            grads = to_half(jax.tree.map(changed, normal(1, SHAPES)))
            updates, state = run(theta, grads)
            for path, x in jax.tree_util.tree_leaves_with_path((updates, state)):
                assert np.all(np.isfinite(x)), (kind, jax.tree_util.keystr(path))
                assert x.dtype != jnp.float16 or path[0].idx == 0, path


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_finite_gradient(dtype):
    x = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 3.0, -2.0], dtype)
    cut = np.float32([0.0, 1e15, -1e15, 3.0, -2.0])
    wide = state_dtype(x)
    assert wide == (dtype if dtype == jnp.bfloat16 else jnp.float32)
    found = finite_gradient(x)
    assert found.dtype == wide
    np.testing.assert_array_equal(found, cut.astype(wide))
    np.testing.assert_array_equal(finite_gradient(x, 2.5), np.clip(cut, -2.5, 2.5))
    slopes = jax.grad(lambda x: jnp.sum(finite_gradient(x)).astype(jnp.float32))(x)
    np.testing.assert_array_equal(slopes, [0, 0, 0, 1, 1])
    assert state_zeros({"x": x})["x"].dtype == wide


def test_squares_of_the_largest_gradients_can_be_added():
    assert 1e8 * gradient_bound(None) ** 2 < np.finfo(np.float32).max
    assert gradient_bound(1e30) == gradient_bound(None) == gradient_bound(np.inf)
    assert gradient_bound(3.0) == 3.0
