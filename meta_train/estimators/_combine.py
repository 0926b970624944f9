"""Estimators made of estimators: several families, several draws."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from ._base import Info, MetaGradient


def average(estimators: Sequence[MetaGradient]) -> MetaGradient:
    """The mean of several estimators' gradients, each with a state and data of its own.

    One compiled program that estimates one after the other: families of different
    shapes in one outer step, or different estimators of one problem.

    Args:
      estimators: at least one; `data` is then a tuple with one entry for each.

    Raises:
      ValueError: no estimators.

    Example:
      >>> import l2o
      >>> from l2o.meta_train import average, constant, learn_optimizer, pes
      >>> from l2o.tasks import quadratic
      >>> problems = [
      ...     learn_optimizer(l2o.learnable_sgd(), quadratic(d)) for d in (3, 10)
      ... ]
      >>> both = average([pes(p, constant(20), truncation=5) for p in problems])
      >>> data = tuple(p.data for p in problems)
    """
    if not estimators:
        raise ValueError("average needs at least one estimator")

    def init(key, theta):
        keys = jax.random.split(key, len(estimators))
        return tuple(e.init(k, theta) for e, k in zip(estimators, keys, strict=True))

    def estimate(key, theta, state, data, step=0):
        keys = jax.random.split(key, len(estimators))
        gradients, states, infos = zip(
            *(
                e.estimate(k, theta, s, d, step)
                for e, k, s, d in zip(estimators, keys, state, data, strict=True)
            ),
            strict=True,
        )
        mean = optax.tree.scale(1 / len(estimators), _sum(gradients))
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *infos)
        return mean, states, _merged(stacked)

    return MetaGradient(init, estimate, tuple(e.specs for e in estimators))


def accumulate(estimator: MetaGradient, draws: int) -> MetaGradient:
    """The mean of `draws` successive estimates at one theta.

    For a truncated estimator those are successive windows.

    Args:
      estimator: any.
      draws: at least 1.

    Raises:
      ValueError: draws < 1.

    Example:
      >>> import l2o
      >>> from l2o.meta_train import accumulate, constant, learn_optimizer, pes
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> four = accumulate(pes(problem, constant(20), truncation=5), 4)
    """
    if draws < 1:
        raise ValueError(f"accumulate needs draws >= 1, not {draws}")

    def estimate(key, theta, state, data, step=0):
        def draw(carry, key):
            total, state = carry
            gradient, state, info = estimator.estimate(key, theta, state, data, step)
            return (optax.tree.add(total, gradient), state), info

        start = (optax.tree.zeros_like(theta), state)
        keys = jax.random.split(key, draws)
        (total, state), infos = jax.lax.scan(draw, start, keys)
        return optax.tree.scale(1 / draws, total), state, _merged(infos)

    return MetaGradient(estimator.init, estimate, estimator.specs)


def _sum(trees):
    return jax.tree.map(lambda *x: sum(x[1:], x[0]), *trees)


def _merged(infos: Info) -> Info:
    """One Info of several, whose fields lead with their number."""
    used = infos.particles - infos.nonfinite
    loss = jnp.sum(infos.meta_loss * used) / jnp.maximum(jnp.sum(used), 1)
    return jax.tree.map(jnp.sum, infos)._replace(meta_loss=loss)
