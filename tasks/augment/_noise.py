"""Noisy gradients."""

import math

import jax

from .._base import TaskFamily
from ._gradient import modified, norm
from ._random import normal_like
from ._strength import Strength, check_positive, log_uniform
from ._wrap import layers, wrap

_SALT = 0x9015E  # keeps these draws apart from the family's own


def gradient_noise(
    family: TaskFamily, std: Strength, relative: bool = True
) -> TaskFamily:
    r"""Adds Gaussian noise to the gradient, fresh in every step.

    .. math:: g' = g + \sigma \frac{\lVert g \rVert_2}{\sqrt P}\, n, \quad
              n_i \sim N(0, 1)

    for P parameters, so that at sigma = 1 there is as much noise as gradient. The loss
    is the family's.

    Args:
      family: any family.
      std: sigma; of a pair (low, high) every task draws its own, log-uniform.
      relative: False adds `sigma n`, whatever the size of the gradient.

    Raises:
      ValueError: a std that is not positive.

    Example:
      >>> from l2o.tasks import gradient_noise, quadratic
      >>> gradient_noise(quadratic(3), (0.01, 1.0)).name
      'quadratic3/noise'

    Source: Neelakantan et al. (2015), "Adding gradient noise improves learning for very
    deep networks"; there absolute and annealed.
    """
    check_positive("std", std)

    def change(task, config):
        def modify(gradient, key):
            scale = config["std"]
            if relative:
                entries = sum(x.size for x in jax.tree.leaves(gradient))
                scale = scale * norm(gradient) / math.sqrt(entries)
            noise = normal_like(key, gradient)
            return jax.tree.map(lambda g, n: g + scale * n, gradient, noise)

        return modified(task, modify, _SALT + layers(config))

    return wrap(
        family, "noise", change, lambda key: {"std": log_uniform(key, std)}, _SALT
    )
