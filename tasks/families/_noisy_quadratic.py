"""The noisy and the logarithmic quadratics of google/learned_optimization."""

import math

import jax
import jax.numpy as jnp

from .._base import TaskFamily, clipped, log_scaled, stateless
from ..augment import with_gradient
from ._variants import above_floor


def noisy_quadratic(
    dim: int = 10, *, scale: float = 25.0, noise: float = 1.0
) -> TaskFamily:
    r"""Quadratics whose gradient has noise that does not depend on the point.

    .. math:: f(p) = \sum_i (s_i (c_i - p_i))^2, \quad
              g = \nabla f(p) + \sigma n, \quad s_i \sim U(0, S), \quad
              c_i, n_i, p_i(0) \sim N(0, 1)

    The loss is without noise, its minimum 0 at p = c.

    Args:
      dim: number of coordinates.
      scale: S.
      noise: sigma, standard deviation of the gradient's noise.

    The meta-loss is `log_scaled` by what the start costs on average, `2 d S^2 / 3`.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("noisy_quadratic", dim=3, noise=10.0)

    Source: google/learned_optimization, tasks/quadratics.py (2021).
    """

    def sample(key):
        k_scale, k_minimum = jax.random.split(key)
        return {
            "scale": jax.random.uniform(k_scale, (dim,), maxval=scale),
            "minimum": jax.random.normal(k_minimum, (dim,)),
        }

    def task(config, data):
        del data

        def exact(p):
            return jnp.sum((config["scale"] * (config["minimum"] - p)) ** 2)

        def loss(p, key, shift):
            del key
            value, gradient = jax.value_and_grad(exact)(p)
            return with_gradient(value, gradient + shift, p)

        return stateless(
            init=lambda key: jax.random.normal(key, (dim,)),
            batch=lambda key, split: noise * jax.random.normal(key, (dim,)),
            loss=loss,
            normalize=log_scaled(2 * dim * scale**2 / 3),
        )

    return TaskFamily(
        sample,
        task,
        name=f"noisy_quadratic{dim}",
        optimum=lambda config, data: jnp.zeros(()),
    )


def noisy_mean(dim: int = 2, *, noise: float = 1.0, start: float = 10.0) -> TaskFamily:
    r"""The mean of a Gaussian in a random metric, one example per step.

    .. math:: f(p) = (p - n)^T H (p - n), \quad H = A A^T, \quad A_{ij} \sim N(0, 1),
              \quad n_i \sim N(0, \sigma^2), \quad p_i(0) \sim N(0, s^2)

    The smallest expected loss is `sigma^2 trace(H)`, at p = 0. The published task has
    one A for all; here every task draws its own.

    Args:
      dim: number of coordinates.
      noise: sigma.
      start: s.

    The meta-loss is `log_scaled` by what the start costs, `(s^2 + sigma^2) trace(H)`.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("noisy_mean", noise=0.1)

    Source: google/learned_optimization, tasks/quadratics.py (2021).
    """

    def sample(key):
        factor = jax.random.normal(key, (dim, dim))
        return {"matrix": factor @ factor.T}

    def task(config, data):
        del data
        baseline = (start**2 + noise**2) * jnp.trace(config["matrix"])
        return stateless(
            init=lambda key: start * jax.random.normal(key, (dim,)),
            batch=lambda key, split: noise * jax.random.normal(key, (dim,)),
            loss=lambda p, key, n: (p - n) @ config["matrix"] @ (p - n),
            normalize=above_floor(0.0, baseline),
        )

    return TaskFamily(
        sample,
        task,
        name=f"noisy_mean{dim}",
        optimum=lambda config, data: noise**2 * jnp.trace(config["matrix"]),
    )


def log_quadratic(dim: int = 10) -> TaskFamily:
    r"""The logarithm of a quadratic: gradients grow where it is approached.

    .. math:: f(p) = \log \sum_i (p_i - c_i)^2, \quad c_i, p_i(0) \sim N(0, 1)

    It has no minimum: it falls to minus infinity at c. c is 0 in the published task,
    which a weight decay would find.

    Args:
      dim: number of coordinates.

    The meta-loss is that of a `log_scaled` quadratic with `2 d` for its baseline.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("log_quadratic", dim=3)

    Source: google/learned_optimization, tasks/quadratics.py (2021).
    """
    bounded = clipped(11.0)

    def task(config, data):
        del data
        return stateless(
            init=lambda key: jax.random.normal(key, (dim,)),
            batch=lambda key, split: (),
            loss=lambda p, key, batch: jnp.log(jnp.sum((p - config["minimum"]) ** 2)),
            normalize=lambda loss: bounded(10 + loss - math.log(2 * dim)) / 5,
        )

    return TaskFamily(
        lambda key: {"minimum": jax.random.normal(key, (dim,))},
        task,
        name=f"log_quadratic{dim}",
    )
