"""Quadratics with a known minimum."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily, stateless
from .._orthonormal import orthonormal

Spectrum = Literal[
    "log_uniform", "uniform", "two_clusters", "power_law", "single_spike"
]


def quadratic(
    dim: int = 10,
    *,
    log10_condition: float = 1.0,
    noise: float = 0.0,
    spectrum: Spectrum = "log_uniform",
    rotated: bool = False,
) -> TaskFamily:
    r"""Quadratics with random curvatures and minima.

    .. math:: f(x) = \tfrac12 \sum_i a_i (Q^T (x - c - \sigma n))_i^2, \quad
              10^{-\kappa} \le a_i \le 1, \quad c_i, n_i, x_i(0) \sim N(0, 1)

    The minimum of the noiseless loss is 0 at x = c; `optimum` has the noise's share,
    `sigma^2 sum(a) / 2`. The meta-loss is the loss as it is.

    Args:
      dim: number of coordinates.
      log10_condition: kappa; condition numbers up to `10^kappa`, exactly that for the
        last three spectra.
      noise: sigma, standard deviation of the minimum's displacement in a batch.
      spectrum: "log_uniform" and "uniform" draw curvatures from the range,
        "two_clusters" has half of them at either end, "power_law" is `i^-p` down to
        the smallest one, "single_spike" has one at 1 and the others at the low end.
      rotated: the axes are a random orthogonal basis Q; the identity by default, where
        coordinates do not interact.

    Raises:
      ValueError: unknown spectrum.

    Example:
      >>> import jax
      >>> from l2o.tasks import quadratic
      >>> family = quadratic(3)
      >>> task = family.task(family.sample(jax.random.key(0)), family.data)
      >>> params, _ = task.init(jax.random.key(1))

    Source: spectra as in the noisy quadratic model of Zhang et al., "Which algorithmic
    choices matter at which batch sizes?" (2019).
    """
    check_known("spectrum", spectrum, get_args(Spectrum))

    def sample(key):
        k_curvature, k_minimum = jax.random.split(key)
        config = {
            "curvature": _curvature(k_curvature, spectrum, dim, log10_condition),
            "minimum": jax.random.normal(k_minimum, (dim,)),
        }
        if rotated:
            # Beside split's two keys, so that these draws are as without a basis.
            basis = orthonormal(jax.random.fold_in(key, 2), dim, dim)
            config["basis"] = basis
        return config

    def task(config, data):
        del data

        def loss(x, key, shift):
            del key
            distance = x - config["minimum"] - shift
            if rotated:
                distance = config["basis"].T @ distance
            return 0.5 * jnp.sum(config["curvature"] * distance**2)

        return stateless(
            init=lambda key: jax.random.normal(key, (dim,)),
            batch=lambda key, split: noise * jax.random.normal(key, (dim,)),
            loss=loss,
        )

    def optimum(config, data):
        del data
        return 0.5 * noise**2 * jnp.sum(config["curvature"])

    parts = [f"quadratic{dim}"]
    parts += [spectrum] * (spectrum != "log_uniform") + ["rotated"] * rotated
    return TaskFamily(sample, task, name="-".join(parts), optimum=optimum)


def _curvature(
    key: jax.Array, spectrum: Spectrum, dim: int, log10_condition: float
) -> jax.Array:
    low = 10.0**-log10_condition
    index = jnp.arange(dim)
    if spectrum == "log_uniform":
        exponent = jax.random.uniform(key, (dim,), minval=-log10_condition, maxval=0)
        return 10.0**exponent
    if spectrum == "uniform":
        return jax.random.uniform(key, (dim,), minval=low, maxval=1.0)
    if spectrum == "two_clusters":
        return jnp.where(index < (dim + 1) // 2, 1.0, low)
    if spectrum == "power_law":
        power = log10_condition / math.log10(dim) if dim > 1 else 0.0
        return (1.0 + index) ** -power
    return jnp.where(index == 0, 1.0, low)
