"""An optimizer that remembers what its wrapper gave it, and a few steps to watch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from helpers import KEY, normal

import l2o

SHAPES = {"w": (3, 2), "b": (2,), "s": ()}
PARAMS = normal(0, SHAPES)
GRADS = [normal(seed, SHAPES) for seed in range(1, 8)]
LOSSES = [0.5, 3.0, 0.25, 1.5, -0.75, 2.0, 4.0]
SMALL_FC = l2o.small_fc(step_mult=0.1)
RATE = 0.1


class Seen(NamedTuple):
    """The state of `probe`: what it was given last."""

    gradient: Any
    value: jax.Array
    calls: jax.Array
    num_steps: jax.Array


def probe(needs=("params",), learning_rate=RATE):
    """SGD that remembers what it was given; a loss that was not is NaN."""

    def bind(theta, *, num_steps=None):
        def init(params):
            n = jnp.float32(jnp.nan if num_steps is None else num_steps)
            zeros = optax.tree.zeros_like(params, dtype=jnp.float32)
            return Seen(zeros, jnp.float32(0), jnp.int32(0), n)

        def update(updates, state, params=None, *, value=None, **extra_args):
            value = jnp.float32(jnp.nan if value is None else value)
            seen = Seen(updates, value, state.calls + 1, state.num_steps)
            return optax.tree.scale(-theta["rate"], updates), seen

        return l2o.transformation(init, update)

    return l2o.LearnedOptimizer(
        lambda key: {"rate": jnp.float32(learning_rate)}, bind, needs=needs
    )


def bound(optimizer, **kwargs):
    return optimizer.bind(optimizer.init_theta(KEY), **kwargs)


def steps(tx, params=PARAMS, grads=GRADS[:2], losses=LOSSES, move=True):
    """Yields parameters before the step, gradients, loss, updates and the new state."""
    state = tx.init(params)
    for g, loss in zip(grads, losses):
        updates, state = tx.update(g, state, params, value=loss)
        yield params, g, loss, updates, state
        params = optax.apply_updates(params, updates) if move else params


def tree(f, *trees):
    return jax.tree.map(f, *trees)


C = {"w": 0.25, "b": 1.0, "s": 3.0}
