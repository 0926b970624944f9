"""What happens to gradients and losses in practice, to test stability with."""

import jax
import jax.numpy as jnp

from .._base import TaskFamily
from ._gradient import modified
from ._strength import Strength, check_positive, check_share, log_uniform, uniform
from ._wrap import layers, wrap

_NAN_SALT = 0x0BAD
_SCALE_SALT = 0x5CA1E


def nan_gradient(family: TaskFamily, probability: Strength) -> TaskFamily:
    """Makes the whole gradient NaN in some steps, as an overflow does.

    The loss is the family's.

    Args:
      family: any family.
      probability: of such a step; of a pair (low, high) every task draws its own.

    Raises:
      ValueError: a probability that is none.

    Example:
      >>> from l2o.tasks import nan_gradient, quadratic
      >>> nan_gradient(quadratic(3), 0.01).name
      'quadratic3/nan'

    Source: the overflows that "Mixed precision training" (Micikevicius et al., 2018)
    skips.
    """
    check_share("probability", probability)

    def change(task, config):
        def modify(gradient, key):
            bad = jax.random.bernoulli(key, config["probability"])
            return jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), gradient)

        return modified(task, modify, _NAN_SALT + layers(config))

    return wrap(
        family,
        "nan",
        change,
        lambda key: {"probability": uniform(key, probability)},
        _NAN_SALT,
    )


def scaled_loss(family: TaskFamily, factor: Strength) -> TaskFamily:
    """Multiplies the loss, and so its gradient, by a factor.

    The meta-loss is the family's.

    Args:
      family: any family.
      factor: of a pair (low, high) every task draws its own, log-uniform.

    Raises:
      ValueError: a factor that is not positive.

    Example:
      >>> from l2o.tasks import quadratic, scaled_loss
      >>> scaled_loss(quadratic(3), 1e4).name
      'quadratic3/scaled'

    Source: "Learning gradient descent: better generalization and longer horizons" (Lv
    et al., 2017), where parameters are scaled at random.
    """
    check_positive("factor", factor)

    def change(task, config):
        scale = config["factor"]

        def loss(params, model_state, key, batch):
            value, rest = task.loss(params, model_state, key, batch)
            return value * scale.astype(value.dtype), rest

        def normalize(value):
            return task.normalize(value / scale)

        return task._replace(loss=loss, normalize=normalize)

    scaled = wrap(
        family,
        "scaled",
        change,
        lambda key: {"factor": log_uniform(key, factor)},
        _SCALE_SALT,
    )
    smallest = scaled.optimum
    if smallest is None:
        return scaled
    return scaled._replace(
        optimum=lambda config, data: smallest(config, data) * config["factor"]
    )
