"""Reparametrisation: the same problem seen through rescaled parameters."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily
from ._wrap import wrap

Level = Literal["global", "tensor", "parameter"]
_SALT = 0x5CA1E  # keeps the scale's draw apart from the family's own


def reparametrize(
    family: TaskFamily,
    level: Level = "global",
    scale_range: tuple[float, float] = (1e-3, 1e3),
) -> TaskFamily:
    r"""Trains `w' = w / s` where the family trains w, s drawn once per task.

    .. math:: L'(w') = L(s\, w'), \quad w'_0 = w_0 / s, \quad
              \log s \sim U(\log a, \log b)

    The learned optimizer so meets parameters and gradients of every scale, without
    which it learns the step size of its training tasks by heart.

    Args:
      family: any family.
      level: one s per task ("global"), per tensor, or per parameter.
      scale_range: (a, b).

    Raises:
      ValueError: an unknown level, or a range that is not 0 < a <= b.

    Example:
      >>> from l2o.tasks import quadratic, reparametrize
      >>> family = reparametrize(quadratic(3), "tensor", (0.1, 10))

    Source: VeLO (Metz et al., 2022); the "global" range of Celo (Moudgil et al., 2025).
    """
    check_known("level", level, ("global", "tensor", "parameter"))
    low, high = scale_range
    if not 0 < low <= high < math.inf:
        raise ValueError(f"scale_range must be 0 < low <= high, not {scale_range}")

    def draw(key, shape):
        exponent = jax.random.uniform(
            key, shape, minval=math.log(low), maxval=math.log(high)
        )
        return jnp.exp(exponent)

    def draws(key):
        if level == "global":
            return {"scale": draw(key, ())}
        params = jax.eval_shape(initial, key)
        leaves, structure = jax.tree.flatten(params)
        scales = [
            draw(k, x.shape if level == "parameter" else ())
            for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
        return {"scale": jax.tree.unflatten(structure, scales)}

    def initial(key):
        return family.task(family.sample(key), family.data).init(key)[0]

    def change(task, config):
        def rescale(params, power):
            # In the parameters' own dtype, which may have few bits.
            def one(x, s):
                return (x * s**power).astype(x.dtype)

            scale = config["scale"]
            if level == "global":
                return jax.tree.map(lambda x: one(x, scale), params)
            return jax.tree.map(one, params, scale)

        def init(key):
            params, model_state = task.init(key)
            return rescale(params, -1), model_state

        def loss(params, model_state, key, batch):
            return task.loss(rescale(params, 1), model_state, key, batch)

        return task._replace(init=init, loss=loss)

    return wrap(family, f"reparam-{level}", change, draws, _SALT)
