"""What the test functions of L2O-Scale can be wrapped in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._base import Task, log_scaled, stateless
from ..augment import with_gradient

EPS = 1e-6  # of the published code


class Objective(NamedTuple):
    """One function to be minimised.

    Attributes:
      loss: `(x, batch) -> scalar`.
      init: `key -> x`.
      floor: no loss is below it; None where there is no such number.
      scale: a typical loss at the start, above the floor.
      batch: `key -> batch`.
    """

    loss: Callable[[jax.Array, Any], jax.Array]
    init: Callable[[jax.Array], jax.Array]
    floor: Any
    scale: Any
    batch: Callable[[jax.Array], Any] = lambda key: ()


class Variant(NamedTuple):
    """Wrappers, the outermost last.

    Attributes:
      rescale: s; the parameters are s times those of the problem.
      log: the loss is `log(f + 1e-6) - log(1e-6)`.
      sparse: probability that a coordinate of a step's gradient is 0.
    """

    rescale: float = 1.0
    log: bool = False
    sparse: float = 0.0


def check_variant(variant: Variant, bounded: bool) -> None:
    """Raises `ValueError` for values that make no problem."""
    if not variant.rescale > 0 or not 0 <= variant.sparse <= 1:
        raise ValueError(
            "rescale must be positive and sparse a probability, not "
            f"{variant.rescale} and {variant.sparse}"
        )
    if variant.log and not bounded:
        raise ValueError("log needs a loss that is never negative")


def variant_task(objective: Objective, variant: Variant) -> Task:
    """The task; as a meta-loss, `above_floor`."""

    def wrapped(x, batch):
        value = objective.loss(x / variant.rescale, batch)
        return to_log(value) if variant.log else value

    def loss(x, key, batch):
        if not variant.sparse:
            return wrapped(x, batch)
        value, gradient = jax.value_and_grad(wrapped)(x, batch)
        kept = jax.random.bernoulli(key, 1 - variant.sparse, x.shape)
        return with_gradient(value, jnp.where(kept, gradient, 0.0), x)

    def normalize(loss):
        value = EPS * jnp.expm1(loss) if variant.log else loss
        return above_floor(objective.floor, objective.scale)(value)

    return stateless(
        init=lambda key: variant.rescale * objective.init(key),
        batch=lambda key, split: objective.batch(key),
        loss=loss,
        normalize=normalize,
    )


def variant_minimum(minimum: Any, variant: Variant) -> jax.Array:
    """The smallest loss, from the smallest value of the function."""
    value = jnp.asarray(minimum, jnp.float32)
    return to_log(value) if variant.log else value


def variant_name(name: str, variant: Variant) -> str:
    """Of a family, for reports."""
    parts = [name]
    parts += [f"rescale{variant.rescale:g}"] * (variant.rescale != 1)
    parts += ["log"] * variant.log
    parts += [f"sparse{variant.sparse:g}"] * (variant.sparse > 0)
    return "-".join(parts)


def to_log(value: jax.Array) -> jax.Array:
    """0 where the value is."""
    return jnp.log(value + EPS) - jnp.log(EPS)


def above_floor(floor: Any, scale: Any) -> Callable[[jax.Array], jax.Array]:
    r"""A `Task.normalize`: `log_scaled` from the floor up, or where there is none

    .. math:: (10 + \mathrm{clip}(\mathrm{arsinh}(\ell / s), -10, 1)) / 5
    """

    def unbounded(loss):
        ratio = jnp.arcsinh(loss / scale)
        return (10 + jnp.clip(jnp.where(jnp.isnan(loss), 1.0, ratio), -10, 1)) / 5

    if floor is None:
        return unbounded
    return lambda loss: log_scaled(scale)(loss - floor)
