"""Full unrolls: N new particles, trained from beginning to end in one call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._mesh import on_particles
from ._base import Info
from ._episode_lengths import Schedule
from ._episodes import over_runs, total
from ._objective import Objective, check_objective, normalized, weighted
from ._problem import Bilevel
from ._unroll import inner_init, measure_end, unroll


class FullUnroll(NamedTuple):
    """What whole episodes gave: value = sum of terms / divisor."""

    terms: jax.Array  # (S, N, M)
    divisor: jax.Array | int
    length: jax.Array  # int32: inner steps of every run


def make_full_unroll(
    problem: Bilevel,
    schedule: Schedule,
    objective: Objective,
    *,
    particles: int,
    levels: int = 0,
    second_derivatives: bool = True,
) -> Callable[[jax.Array, Any, Any, Any], FullUnroll]:
    """`(key, thetas, data, outer step) -> FullUnroll`; thetas lead with (S, N).

    All particles of a call share one length, so that a run costs the steps it has: the
    rest of `schedule.maximum` is skipped, not computed in vain.

    Raises:
      ValueError: no particles, or an impossible objective.
    """
    if particles < 1:
        raise ValueError(f"an estimator needs particles >= 1, not {particles}")
    check_objective(objective, windows=False)
    varies = schedule.minimum != schedule.maximum

    def full_unroll(key, thetas, data, outer_step):
        # Not before: an array ends the choice of devices.
        steps = jnp.arange(schedule.maximum)
        length = schedule(jax.random.fold_in(key, particles), outer_step)

        def run(theta, key, given):
            data, length = given
            # As truncated estimators draw, but for the length: all of one there is.
            k_config, _, k_init, k_steps = jax.random.split(key, 4)
            tx, task = problem.inner(theta, problem.sample(k_config), data, length)
            inner, values = unroll(
                tx,
                task,
                inner_init(tx, task, k_init),
                k_steps,
                steps,
                objective,
                length=length if varies else None,
                levels=levels,
                second_derivatives=second_derivatives,
            )
            if objective.at_end:
                end = measure_end(task, inner, k_steps, length - 1, objective)
                return normalized(objective, task, end[None])
            return normalized(objective, task, values)

        keys = on_particles(jax.random.split(key, particles))
        values = over_runs(run, 1, 1)(on_particles(thetas, 1), keys, (data, length))
        if objective.at_end:
            return FullUnroll(values, 1, length)
        counts = steps < length
        if objective.over in ("mean", "late"):
            terms = weighted(objective, values, steps, length)
            return FullUnroll(terms, length, length)
        if objective.over == "min":
            value = jnp.min(jnp.where(counts, values, jnp.inf), -1)
        else:
            value = values[..., length - 1]
        return FullUnroll(value[..., None], 1, length)

    return full_unroll


def full_info(result: FullUnroll, finite: jax.Array) -> Info:
    """About one call; `finite` (N,) are the particles that are used."""
    signs = len(result.terms)
    values = jnp.sum(result.terms, -1) / result.divisor
    return Info(
        meta_loss=jnp.sum(jnp.where(finite, values, 0.0))
        / jnp.maximum(signs * total(finite), 1),
        inner_steps=signs * finite.size * result.length,
        episodes=jnp.int32(finite.size),
        nonfinite=total(~finite),
        particles=jnp.int32(finite.size),
    )
