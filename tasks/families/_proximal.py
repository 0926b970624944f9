"""Proximal gradient methods: the classical answer to composite problems."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Prox = Callable[[Any, Any], Any]


def prox_l1(u: jax.Array, threshold: Any) -> jax.Array:
    r"""Soft thresholding, the proximal operator of the 1-norm.

    .. math:: \mathrm{sign}(u) \max(|u| - t, 0) =
              \arg\min_x \tfrac12 (x - u)^2 + t\,|x|

    Args:
      u: any shape.
      threshold: t, a number or one per coordinate.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import prox_l1
      >>> [float(x) for x in prox_l1(jnp.array([-3.0, 0.5, 2.0]), 1.0)]
      [-2.0, 0.0, 1.0]
    """
    return jnp.sign(u) * jnp.maximum(jnp.abs(u) - threshold, 0)


def ista(
    gradient: Callable[[jax.Array], jax.Array],
    prox: Prox,
    lipschitz: Any,
    start: jax.Array,
    steps: Any,
) -> jax.Array:
    r"""Proximal gradient descent.

    .. math:: x \leftarrow \mathrm{prox}_{1/L}(x - \nabla f(x) / L)

    Args:
      gradient: of the smooth part f.
      prox: `(u, step) -> x`, the proximal operator of step times the other part.
      lipschitz: L, the Lipschitz constant of the gradient.
      start: x.
      steps: how many, may be traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import ista, prox_l1
      >>> x = ista(lambda x: x - 3, prox_l1, 1.0, jnp.zeros(()), 5)
      >>> float(x)
      2.0

    Source: "A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems" (Beck & Teboulle, 2009), equation 1.4.
    """
    return lax.fori_loop(
        0, steps, lambda _, x: prox(x - gradient(x) / lipschitz, 1 / lipschitz), start
    )


def fista(
    gradient: Callable[[jax.Array], jax.Array],
    prox: Prox,
    lipschitz: Any,
    start: jax.Array,
    steps: Any,
) -> jax.Array:
    r"""Proximal gradient descent with Nesterov's momentum.

    .. math:: z' = \mathrm{prox}_{1/L}(x - \nabla f(x) / L), \quad
              t' = \tfrac12 (1 + \sqrt{1 + 4 t^2}), \quad
              x \leftarrow z' + \tfrac{t - 1}{t'} (z' - z)

    Args:
      gradient, prox, lipschitz, start, steps: as in `ista`.

    Returns:
      z, the last point that came out of the prox.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import fista, prox_l1
      >>> x = fista(lambda x: x - 3, prox_l1, 1.0, jnp.zeros(()), 5)
      >>> float(x)
      2.0

    Source: "A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems" (Beck & Teboulle, 2009), equations 4.1 to 4.3.
    """

    def step(_, state):
        x, z, t = state
        new_z = prox(x - gradient(x) / lipschitz, 1 / lipschitz)
        new_t = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return new_z + (t - 1) / new_t * (new_z - z), new_z, new_t

    return lax.fori_loop(0, steps, step, (start, start, jnp.ones(())))[1]
