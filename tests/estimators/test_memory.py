"""Memory: of reverse mode through long scans, and of a particle."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2o
from l2o import meta_train as mt
from l2o.meta_train import constant, learn_optimizer
from l2o.tasks import make_family


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [1, 7, 16, 30])
def test_checkpointing_changes_no_number(levels, length):
    def loss(x):
        def body(carry, t):
            carry = jnp.sin(carry * x + t)
            return carry, carry**2

        end, ys = mt.checkpointed_scan(body, x, jnp.arange(length), levels)
        assert ys.shape == (length,)
        return end + jnp.sum(ys * jnp.arange(length))

    def plain(x):
        carry, total = x, 0.0
        for t in range(length):
            carry = jnp.sin(carry * x + t)
            total += carry**2 * t
        return carry + total

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(0.7))
    expected, expected_slope = jax.jit(jax.value_and_grad(plain))(jnp.float32(0.7))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=2e-4)


def test_checkpointing_bounds_memory():
    # Temporary bytes of the compiled gradient: T = 400 steps of a state of 4 kB.
    length, size = 400, 1000

    def temporaries(levels):
        def loss(x):
            def body(carry, t):
                return jnp.sin(carry + t) * jnp.cos(carry), ()

            end, _ = mt.checkpointed_scan(body, x, jnp.arange(length), levels)
            return jnp.sum(end)

        compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros(size)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * size)

    states = {levels: temporaries(levels) for levels in range(4)}
    assert states[0] > length and length <= states[1] < 1.2 * length
    assert states[2] < 3 * math.sqrt(length)
    assert states[3] < 5 * length ** (1 / 3) + 10


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="particles at once there")
def test_memory_of_a_particle_is_that_of_its_states():
    problem = learn_optimizer(l2o.learnable_adam(), make_family("mlp32"))
    theta = problem.init_theta(jax.random.key(0))

    def memory(particles):
        estimator = mt.pes(problem, constant(20), particles=particles, truncation=5)
        state = jax.eval_shape(estimator.init, jax.random.key(0), theta)
        estimate = jax.jit(estimator.estimate, donate_argnums=2)
        lowered = estimate.lower(jax.random.key(0), theta, state, problem.data, 0)
        temporary = lowered.compile().memory_analysis().temp_size_in_bytes
        return temporary, sum(4 * x.size for x in jax.tree.leaves(state))

    temporary, own = np.subtract(memory(6), memory(2))
    assert own > 4 * 2 * 3 * 4 * 2000  # particles, signs, Adam, bytes, parameters
    assert temporary < 0.1 * own
