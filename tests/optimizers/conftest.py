"""What several test files of optimizers are given."""

import jax
import optax
import pytest
from contract import Case
from every_optimizer import NUM_STEPS, OPTIMIZERS, VARIANTS


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in VARIANTS else [])
        for name in OPTIMIZERS
    ],
)
def case(request):
    """One optimizer; `step` is compiled once and shared by all its tests.

    Hand `step` trees of `SHAPES` in float32 only: a test counts its compilations.
    """
    optimizer = OPTIMIZERS[request.param]
    theta = optimizer.init_theta(jax.random.key(0))

    @jax.jit
    def step(theta, params, state, grads, loss):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    other_theta = jax.tree.map(lambda x: 1.1 * x + 0.01, theta)
    tx = optimizer.bind(theta, num_steps=NUM_STEPS)
    return Case(optimizer, theta, other_theta, tx, step)
