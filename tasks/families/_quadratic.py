"""Quadratics with a known minimum."""

import jax
import jax.numpy as jnp

from .._base import TaskFamily, stateless


def quadratic(
    dim: int = 10, *, log10_condition: float = 1.0, noise: float = 0.0
) -> TaskFamily:
    r"""Separable quadratics with random curvatures and minima.

    .. math:: f(x) = \tfrac12 \sum_i a_i (x_i - c_i - \sigma n_i)^2, \quad
              \log_{10} a_i \sim U(-\kappa, 0), \quad c_i, n_i, x_i(0) \sim N(0, 1)

    The minimum of the noiseless loss is 0 at x = c.

    Args:
      dim: number of coordinates.
      log10_condition: kappa; condition numbers up to `10^kappa`.
      noise: sigma, standard deviation of the minimum's displacement in a batch.

    Example:
      >>> import jax
      >>> from l2o.tasks import quadratic
      >>> family = quadratic(3)
      >>> task = family.task(family.sample(jax.random.key(0)), family.data)
      >>> params, _ = task.init(jax.random.key(1))
    """

    def sample(key):
        k_curvature, k_minimum = jax.random.split(key)
        exponent = jax.random.uniform(
            k_curvature, (dim,), minval=-log10_condition, maxval=0
        )
        return {
            "curvature": 10.0**exponent,
            "minimum": jax.random.normal(k_minimum, (dim,)),
        }

    def task(config, data):
        del data
        return stateless(
            init=lambda key: jax.random.normal(key, (dim,)),
            batch=lambda key, split: noise * jax.random.normal(key, (dim,)),
            loss=lambda x, key, shift: (
                0.5
                * jnp.sum(config["curvature"] * (x - config["minimum"] - shift) ** 2)
            ),
        )

    return TaskFamily(sample, task, name=f"quadratic{dim}")
