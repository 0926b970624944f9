"""Population-based training of the outer hyper-parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._outer import Outer, OuterInfo, OuterStep

_SMOOTHING = 0.9  # of the meta-loss a member is judged by: about ten outer steps


class Population(NamedTuple):
    """P outer loops side by side; leaves lead with (P,).

    Attributes:
      outer: the members' states.
      hypers: numbers that differ between them, by name, each of shape (P,).
      score: smoothed meta-loss since the last exchange; the lowest is best.
      updates: outer steps since the last exchange, int32.
    """

    outer: Outer
    hypers: dict[str, jax.Array]
    score: jax.Array
    updates: jax.Array


def make_population(
    init: Callable[[dict[str, jax.Array], jax.Array], Outer],
    hypers: dict[str, jax.Array],
    key: jax.Array,
) -> Population:
    """P members, each with its hyper-parameters and its own randomness.

    Args:
      init: `(a member's hyper-parameters, key) -> Outer`.
      hypers: name -> (P,) values.
      key: of the population.
    """
    (size,) = {len(values) for values in hypers.values()}
    outer = jax.vmap(init)(hypers, jax.random.split(key, size))
    return Population(outer, hypers, jnp.zeros(size), jnp.zeros(size, jnp.int32))


def make_population_step(
    outer_step: Callable[[dict[str, jax.Array]], OuterStep],
) -> Callable[[Population, Any, Any], tuple[Population, Any, OuterInfo]]:
    """`(population, worker, data) -> (population, worker, info)`, all members at once.

    Args:
      outer_step: hyper-parameters (traced scalars) -> a member's outer step; optax's
        optimizers take them as they are: `optax.adam(hypers["learning_rate"])`.

    The worker's and the info's leaves lead with (P,).

    Example:
      >>> import jax, jax.numpy as jnp, l2o, optax
      >>> from l2o.meta_train import (
      ...     Outer, constant, exchange, learn_optimizer, make_outer_step,
      ...     make_population, make_population_step, pes,
      ... )
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = pes(problem, constant(20), truncation=5)
      >>> def outer_step(hypers):
      ...     return make_outer_step(estimator, optax.adam(hypers["learning_rate"]))
      >>> def init(hypers, key):
      ...     theta = problem.init_theta(jax.random.key(0))
      ...     opt_state = optax.adam(hypers["learning_rate"]).init(theta)
      ...     return Outer(theta, opt_state, jnp.int32(0), key)
      >>> rates = {"learning_rate": jnp.array([1e-4, 1e-3, 1e-2, 1e-1])}
      >>> population = make_population(init, rates, jax.random.key(1))
      >>> keys = jax.random.split(jax.random.key(2), 4)
      >>> worker = jax.vmap(estimator.init)(keys, population.outer.theta)
      >>> step = jax.jit(make_population_step(outer_step))
      >>> population, worker, info = step(population, worker, problem.data)
      >>> population, worker = exchange(jax.random.key(3), population, worker)
    """

    def step(population, worker, data):
        def member(hypers, outer, worker):
            return outer_step(hypers)(outer, worker, data)

        outer, worker, info = jax.vmap(member)(
            population.hypers, population.outer, worker
        )
        # A mean at first, an exponential one later: no step counts double.
        share = jnp.maximum(1 / (population.updates + 1), 1 - _SMOOTHING)
        loss = jnp.where(info.skipped, jnp.inf, info.estimate.meta_loss)
        # Right after an exchange the score is still the old one, which tells the best.
        old = jnp.where(population.updates == 0, loss, population.score)
        score = old + share * (loss - old)
        score = jnp.where(jnp.isnan(score), jnp.inf, score)
        updates = population.updates + 1
        return Population(outer, population.hypers, score, updates), worker, info

    return step


def best_member(population: Population) -> jax.Array:
    """Which member has the lowest score.

    Args:
      population: P members.

    Returns:
      An index, int32, shape ().
    """
    return jnp.argmin(population.score)


def exchange(
    key: jax.Array,
    population: Population,
    worker: Any,
    *,
    share: float = 0.25,
    factor: float = 1.25,
) -> tuple[Population, Any]:
    """The worst members become copies of the best, with perturbed hyper-parameters.

    Each of the worst `share` takes theta, outer optimizer state, inner runs and hyper-
    parameters of one of the best `share`, drawn at random, and multiplies or divides
    each hyper-parameter by `factor`. Keys stay its own. Scores are those of the sources
    until the next step, with which they start afresh.

    Args:
      key: of this exchange.
      population: after a number of steps.
      worker: any pytree whose leaves lead with (P,), such as all workers.
      share: of the population that is replaced, at most a half.
      factor: > 1.

    Raises:
      ValueError: share or factor out of range.

    Source: "Population based training of neural networks" (Jaderberg et al., 2017).
    """
    if not 0 < share <= 0.5 or not factor > 1:
        raise ValueError(
            f"exchange needs 0 < share <= 0.5 and factor > 1, not {share}, {factor}"
        )
    size = len(population.score)
    count = max(1, int(share * size)) if size > 1 else 0
    order = jnp.argsort(population.score)
    k_parent, k_up = jax.random.split(key)
    best, worst = order[:count], order[size - count :]
    source = jnp.arange(size)
    if count:
        source = source.at[worst].set(jax.random.choice(k_parent, best, (count,)))
    replaced = source != jnp.arange(size)

    def copied(tree):
        return jax.tree.map(lambda x: x[source], tree)

    hypers = {}
    for i, (name, values) in enumerate(sorted(population.hypers.items())):
        up = jax.random.bernoulli(jax.random.fold_in(k_up, i), shape=(size,))
        moved = values[source] * jnp.where(up, factor, 1 / factor)
        hypers[name] = jnp.where(replaced, moved, values)
    outer = copied(population.outer)._replace(key=population.outer.key)
    fresh = Population(
        outer, hypers, population.score[source], jnp.zeros(size, jnp.int32)
    )
    return fresh, copied(worker)
