"""What a third party brings: each is a plain function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o.tasks import Dataset, TaskFamily, from_arrays, stateless


def stranger_sgd(learning_rate: float = 0.1) -> l2o.LearnedOptimizer:
    """Gradient descent whose rate is meta-learned.

    Source: a test of l2o (2026).
    """

    def init_theta(key):
        del key
        return {"log_rate": jnp.log(jnp.float32(learning_rate))}

    def bind(theta, *, num_steps=None):
        del num_steps

        def update(updates, state, params=None, **extra_args):
            del params, extra_args
            rate = jnp.exp(theta["log_rate"])
            return jax.tree.map(lambda g: -rate * g, updates), state

        return l2o.transformation(
            lambda params: optax.EmptyState(), update, name="stranger_sgd"
        )

    return l2o.LearnedOptimizer(
        init_theta, bind, "stranger_sgd", {"learning_rate": learning_rate}
    )


def stranger_half(optimizer: l2o.LearnedOptimizer) -> l2o.LearnedOptimizer:
    """Half the steps of any learned optimizer."""

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)
        return optax.with_extra_args_support(optax.chain(tx, optax.scale(0.5)))

    inner = {"name": optimizer.name, "arguments": dict(optimizer.arguments)}
    return optimizer._replace(
        bind=bind, name="stranger_half", arguments={"optimizer": inner}
    )


@functools.cache
def stranger_stripes() -> Dataset:
    """Rows of an identity, labelled even and odd."""
    return from_arrays({"x": np.eye(40, dtype=np.float32), "y": np.arange(40) % 2})


def stranger_bowl(dim: int = 3) -> TaskFamily:
    """`|x - c|^2`, with a centre c of each task's own."""

    def task(centre, data):
        del data
        return stateless(
            init=lambda key: jax.random.normal(key, (dim,)),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: jnp.sum((x - centre) ** 2),
        )

    return TaskFamily(lambda key: jax.random.normal(key, (dim,)), task, name="bowl")
