"""Problems of a smooth part and a 1-norm."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from l2o.names import check_known

from ..augment import with_gradient
from ._proximal import fista, prox_l1

Gradient = Literal["full", "smooth"]
_STEPS = 5000  # of FISTA for a published F*


class Composite(NamedTuple):
    r"""What a proximal method needs to know of a problem.

    .. math:: F(x) = f(x) + \rho \|x\|_1

    Attributes:
      smooth: f.
      rho: weight of the 1-norm.
      bound: `() -> L`, a Lipschitz constant of f's gradient; not computed by a loss.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from l2o.tasks import fista, lasso_problem, make_family
      >>> family = make_family("lasso", rows=20, dim=40, nonzeros=5)
      >>> config = family.sample(jax.random.key(0))
      >>> problem = lasso_problem(**config)
      >>> gradient = jax.grad(problem.smooth)
      >>> x = fista(gradient, problem.prox, problem.lipschitz, jnp.zeros(40), 1000)
      >>> bool(jnp.isclose(problem.value(x), family.optimum(config, ()), rtol=1e-3))
      True
    """

    smooth: Callable[[jax.Array], jax.Array]
    rho: Any
    bound: Callable[[], jax.Array]

    @property
    def lipschitz(self) -> jax.Array:
        """L."""
        return self.bound()

    def value(self, x: jax.Array) -> jax.Array:
        """F."""
        return self.smooth(x) + self.rho * jnp.sum(jnp.abs(x))

    def prox(self, u: jax.Array, step: Any) -> jax.Array:
        """The proximal operator of `step` times the 1-norm's part."""
        return prox_l1(u, step * self.rho)

    def minimum(self, start: jax.Array, steps: int = _STEPS) -> jax.Array:
        """F after FISTA from there."""
        gradient = jax.grad(self.smooth)
        return self.value(fista(gradient, self.prox, self.lipschitz, start, steps))

    def loss(self, x: jax.Array, gradient: Gradient) -> jax.Array:
        """F, whose gradient is that of F or of f."""
        if gradient == "full":
            return self.value(x)
        return with_gradient(self.value(x), jax.grad(self.smooth)(x), x)


def check_gradient(gradient: str) -> None:
    """Raises `ValueError` for what is no `Gradient`."""
    check_known("gradient", gradient, get_args(Gradient))


def spectral_square(matrix: jax.Array) -> jax.Array:
    """The largest eigenvalue of A^T A."""
    return jnp.linalg.norm(matrix, 2) ** 2


def relative_error(value: jax.Array, best: jax.Array) -> jax.Array:
    r"""How far a loss is above the smallest one.

    .. math:: (F - F^*) / F^*

    Args:
      value: F.
      best: F*, positive.

    Example:
      >>> from l2o.tasks import relative_error
      >>> relative_error(3.0, 2.0)
      0.5

    Source: "Towards constituting mathematical structures for learning to optimize" (Liu
    et al., 2023).
    """
    return (value - best) / best
