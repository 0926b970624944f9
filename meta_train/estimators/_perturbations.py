"""Antithetic perturbations of theta, and what their losses weigh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._mesh import on_particles
from ._problem import Bilevel


class Perturbations(NamedTuple):
    """What all evolution strategies share.

    Attributes:
      std: sigma, standard deviation of the perturbations of theta.
      clip: largest absolute loss difference of a pair; None for no bound.
      sign: a number a puts `a * sign(difference)` in its place, so that every pair
        weighs the same whatever the scale of its loss. For a linear objective with
        gradient v the mean is then `a sqrt(2/pi) / (2 sigma) * v / |v|`.
    """

    std: float
    clip: float | None
    sign: float | None


def check_perturbations(perturbations: Perturbations) -> None:
    """Raises `ValueError` for numbers that are not positive."""
    for name, value in perturbations._asdict().items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")


def draw_noise(
    problem: Bilevel, key: jax.Array, theta: Any, particles: int, std: float
) -> Any:
    """One perturbation per particle: theta's structure, leaves lead with (N,)."""
    noise = optax.tree.scale(
        std,
        jax.vmap(optax.tree.random_like, in_axes=(0, None))(
            jax.random.split(key, particles), theta
        ),
    )
    noise = jax.tree.map(lambda e, t: e * t, noise, problem.trainable(theta))
    return on_particles(noise)


def antithetic(theta: Any, noise: Any) -> Any:
    """theta + noise and theta - noise: leaves lead with (2, N)."""
    return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, noise)


def pair_weights(
    terms: jax.Array, divisor: jax.Array | int, perturbations: Perturbations
) -> tuple[jax.Array, jax.Array]:
    """What each pair's direction weighs in the gradient, and which pairs are finite.

    Args:
      terms: (2, N, M); a run's objective is the sum over M, divided by `divisor`.
    """
    difference = jnp.sum(terms[0] - terms[1], -1)
    finite = jnp.isfinite(difference)
    if perturbations.clip is not None:
        bound = perturbations.clip * divisor
        difference = jnp.clip(difference, -bound, bound)
    if perturbations.sign is not None:
        difference = perturbations.sign * divisor * jnp.sign(difference)
    scale = 2 * perturbations.std**2 * divisor * finite.size
    return jnp.where(finite, difference, 0.0) / scale, finite


def weighted(weight: jax.Array, directions: Any) -> Any:
    """Sum over particles of weight (N,) times direction (N, ...)."""
    return jax.tree.map(
        lambda a: jnp.tensordot(weight, a, 1).astype(a.dtype), directions
    )
