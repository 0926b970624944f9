"""Normalised gradients: their size tells nothing."""

import jax

from .._base import TaskFamily
from ._gradient import modified, norm
from ._strength import check_positive
from ._wrap import wrap


def normalized_gradient(family: TaskFamily, eps: float = 1e-12) -> TaskFamily:
    r"""Divides the gradient by its norm over all parameters.

    .. math:: g' = \frac{g}{\lVert g \rVert_2 + \epsilon}

    The loss is the family's.

    Args:
      family: any family.
      eps: makes g' = 0 where g = 0.

    Raises:
      ValueError: an eps that is not positive.

    Example:
      >>> from l2o.tasks import normalized_gradient, quadratic
      >>> normalized_gradient(quadratic(3)).name
      'quadratic3/normalized'

    Source: VeLO (Metz et al., 2022), there without eps.
    """
    check_positive("eps", eps)

    def modify(gradient, key):
        del key
        size = norm(gradient) + eps
        return jax.tree.map(lambda g: g / size, gradient)

    return wrap(family, "normalized", lambda task, config: modified(task, modify))
