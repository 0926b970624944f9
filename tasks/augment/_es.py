"""Gradients estimated from losses."""

import jax

from .._base import TaskFamily
from ._gradient import like, with_gradient
from ._random import normal_like, sum_over_draws
from ._strength import Strength, check_count, check_positive, log_uniform
from ._wrap import layers, wrap

_SALT = 0xE5  # keeps these draws apart from the family's own


def es_gradient(family: TaskFamily, std: Strength = 0.01, pairs: int = 1) -> TaskFamily:
    r"""Replaces the gradient by its antithetic evolution-strategies estimate.

    .. math:: g' = \frac1n \sum_{k=1}^{n}
              \frac{L(p + \sigma e_k) - L(p - \sigma e_k)}{2 \sigma}\, e_k, \quad
              e_k \sim N(0, I)

    All losses of a step are of the same batch and key. The loss that is returned is the
    family's at p; it costs 1 + 2n evaluations, one after the other, and no derivative.

    Args:
      family: any family, also of losses without a useful derivative.
      std: sigma; of a pair (low, high) every task draws its own, log-uniform. The
        perturbed parameters keep their dtype: in bfloat16 a small sigma is rounded off.
      pairs: n.

    Raises:
      ValueError: a std that is not positive, or pairs that are not a number >= 1.

    Example:
      >>> from l2o.tasks import es_gradient, quadratic
      >>> es_gradient(quadratic(3), (0.001, 0.1), pairs=4).name
      'quadratic3/es'

    Source: VeLO (Metz et al., 2022); Salimans et al. (2017).
    """
    check_positive("std", std)
    check_count("pairs", pairs)

    def change(task, config):
        sigma = config["std"]

        def loss(params, model_state, key, batch):
            value, rest = task.loss(params, model_state, key, batch)

            def moved(noise, step):
                moved = jax.tree.map(lambda p, e: p + step * e, params, noise)
                return task.loss(like(moved, params), model_state, key, batch)[0]

            def one(k):
                noise = normal_like(k, params)
                rise = moved(noise, sigma) - moved(noise, -sigma)
                slope = rise / (2 * sigma * pairs)
                return jax.tree.map(lambda e: slope * e, noise)

            k_noise = jax.random.fold_in(key, _SALT + layers(config))
            gradient = sum_over_draws(one, k_noise, pairs, params)
            return with_gradient(value, like(gradient, params), params), rest

        return task._replace(loss=loss)

    return wrap(family, "es", change, lambda key: {"std": log_uniform(key, std)}, _SALT)
