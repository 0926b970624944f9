"""The outer step: estimate a meta-gradient, update theta; one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._base import Info, MetaGradient


class Outer(NamedTuple):
    """What every task family's outer step shares."""

    theta: Any
    opt_state: Any  # of the outer optimizer
    step: jax.Array  # int32: outer steps made
    key: jax.Array  # of the run; step s uses fold_in(key, s)


class OuterInfo(NamedTuple):
    """Scalars about one outer step."""

    estimate: Info
    gradient_norm: jax.Array  # before clipping
    skipped: jax.Array  # bool: there was no finite meta-gradient; theta stayed


OuterStep = Callable[[Outer, Any, Any], tuple[Outer, Any, OuterInfo]]


def outer_optimizer(
    learning_rate: float, *, warmup: int, steps: int, clip: float
) -> optax.GradientTransformation:
    """Adam behind a global-norm clip; warm-up, then a cosine to a tenth of the peak."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, steps, learning_rate / 10
    )
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule))


def make_outer_step(
    estimator: MetaGradient, outer_tx: optax.GradientTransformation
) -> OuterStep:
    """`(outer, worker, data) -> (outer, worker, info)`, to be jitted.

    A meta-gradient with a non-finite entry, or without a finite particle, leaves theta
    and the outer optimizer as they were; the step is counted as skipped.
    """

    def outer_step(outer, worker, data):
        key = jax.random.fold_in(outer.key, outer.step)
        gradient, worker, info = estimator.estimate(
            key, outer.theta, worker, data, outer.step
        )
        norm = optax.tree.norm(gradient)
        updates, opt_state = outer_tx.update(gradient, outer.opt_state, outer.theta)
        finite = jnp.isfinite(norm) & (info.nonfinite < info.particles)
        theta, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(outer.theta, updates), opt_state),
            (outer.theta, outer.opt_state),
        )
        outer = Outer(theta, opt_state, outer.step + 1, outer.key)
        return outer, worker, OuterInfo(info, norm, ~finite)

    return outer_step
