"""The outer step: estimate a meta-gradient, update theta; one compiled program."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.names import unknown_name

from ..estimators._base import Info, MetaGradient


class Outer(NamedTuple):
    """What every task family's outer step shares.

    Attributes:
      theta: what is meta-trained.
      opt_state: of the outer optimizer.
      step: outer steps made, int32.
      key: of the run; step s uses `fold_in(key, s)`.
      average: of theta over outer steps; `()` where none is kept.
    """

    theta: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array
    average: Any = ()


class OuterInfo(NamedTuple):
    """Scalars about one outer step.

    Attributes:
      estimate: what the estimator tells of itself.
      gradient_norm: of the meta-gradient, before clipping.
      skipped: whether there was no finite meta-gradient, and theta stayed.
    """

    estimate: Info
    gradient_norm: jax.Array
    skipped: jax.Array


OuterStep = Callable[[Outer, Any, Any], tuple[Outer, Any, OuterInfo]]


def outer_optimizer(
    learning_rate: float | jax.Array,
    *,
    warmup: int | jax.Array,
    steps: int | jax.Array,
    clip: float | jax.Array,
    name: str = "adam",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> optax.GradientTransformation:
    """Any optimizer of optax behind a global-norm clip, with warm-up and a cosine.

    Numbers may be traced: a program that is handed them serves all their values.

    Args:
      learning_rate: the peak; the cosine ends at a tenth of it.
      warmup: outer steps from 0 to the peak, linearly.
      steps: outer steps in all.
      clip: largest global norm of a meta-gradient.
      name: of an optax optimizer that takes a learning rate.
      options: its other keyword arguments.

    Raises:
      ValueError: an unknown name or option; the message lists the known ones.
    """
    make = getattr(optax, name, None) if name in _optimizers() else None
    if make is None:
        raise ValueError(unknown_name("outer optimizer", name, _optimizers()))
    own = [x for x in inspect.signature(make).parameters if x != "learning_rate"]
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise ValueError(
            f"unknown option {', '.join(unknown)} of {name}; known: {', '.join(own)}"
        )

    # optax.warmup_cosine_decay_schedule takes no traced numbers of steps.
    def schedule(count):
        fall = jnp.clip((count - warmup) / jnp.maximum(steps - warmup, 1), 0, 1)
        cosine = 0.1 + 0.9 * (0.5 + 0.5 * jnp.cos(jnp.pi * fall))
        rise = count / jnp.maximum(warmup, 1)
        return learning_rate * jnp.where(count < warmup, rise, cosine)

    return optax.chain(optax.clip_by_global_norm(clip), make(schedule, **options))


@functools.cache
def _optimizers() -> list[str]:
    """Optimizers of optax that need nothing but a gradient and a learning rate."""

    def fits(make):
        # nadamw is a partial; types and type aliases are callable too.
        if not inspect.isfunction(make) and not isinstance(make, functools.partial):
            return False
        parameters = list(inspect.signature(make).parameters.values())
        return (
            bool(parameters)
            and parameters[0].name == "learning_rate"
            and all(p.default is not p.empty for p in parameters[1:])
        )

    public = [name for name in dir(optax) if not name.startswith("_")]
    return [name for name in public if name != "lbfgs" and fits(getattr(optax, name))]


def make_outer_step(
    estimator: MetaGradient,
    outer_tx: optax.GradientTransformation,
    average: float | None = None,
) -> OuterStep:
    """`(outer, worker, data) -> (outer, worker, info)`, to be jitted.

    A meta-gradient with a non-finite entry, or without a finite particle, leaves theta
    and the outer optimizer as they were; the step is counted as skipped.

    Args:
      estimator: of the meta-gradient.
      outer_tx: what makes it an update of theta.
      average: decay of `Outer.average`, which must then begin as theta; in early steps
        it is (1 + t) / (10 + t), if that is less. None keeps no average.
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
        mean = outer.average
        if average is not None:
            decay = jnp.minimum(average, (1 + outer.step) / (10 + outer.step))
            mean = jax.tree.map(lambda a, x: a + (1 - decay) * (x - a), mean, theta)
        outer = Outer(theta, opt_state, outer.step + 1, outer.key, mean)
        return outer, worker, OuterInfo(info, norm, ~finite)

    return outer_step
