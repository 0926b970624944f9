"""LASSO: sparse linear regression."""

from typing import Any

import jax
import jax.numpy as jnp

from .._base import TaskFamily, stateless
from ._composite import Composite, Gradient, check_gradient, spectral_square
from ._variants import above_floor


def lasso(
    rows: int = 250,
    dim: int = 500,
    nonzeros: int = 50,
    *,
    rho: float = 0.1,
    noise: float = 0.0,
    gradient: Gradient = "full",
) -> TaskFamily:
    r"""Recovery of a sparse vector from fewer measurements than it has entries.

    .. math:: F(x) = \tfrac12 \|W x - y\|^2 + \rho \|x\|_1, \quad
              y = W x^* + \sigma n, \quad x(0) = 0

    W is N(0, 1) with columns scaled to norm 1; x* has `nonzeros` entries from N(0, 1)
    at random places. Every task draws all anew. The defaults are the published sizes;
    the published toy is `lasso(20, 40, 5)`.

    Args:
      rows, dim: of W.
      nonzeros: of x*.
      rho: weight of the 1-norm.
      noise: sigma, 0 as published.
      gradient: "full" is F's; "smooth" is that of the first term, which `l2o_pa` and
        other proximal methods want, while the loss's value stays F.

    The meta-loss is `log_scaled` by F(0). `optimum` is F after 5000 iterations of
    FISTA. The gradient's Lipschitz constant is close to `(1 + sqrt(dim / rows))^2`: 5.8
    for the published size; `lasso_problem(**config).lipschitz` is exact.

    Raises:
      ValueError: unknown gradient, or more non-zeros than entries.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("lasso", rows=20, dim=40, nonzeros=5, gradient="smooth")

    Source: "Towards constituting mathematical structures for learning to optimize" (Liu
    et al., 2023).
    """
    check_gradient(gradient)
    if nonzeros > dim:
        raise ValueError(f"{nonzeros} of {dim} entries cannot be non-zero")

    def sample(key):
        k_matrix, k_places, k_values, k_noise = jax.random.split(key, 4)
        matrix = jax.random.normal(k_matrix, (rows, dim))
        matrix /= jnp.linalg.norm(matrix, axis=0)
        target = matrix @ sparse_vector(k_places, k_values, dim, nonzeros)
        target += noise * jax.random.normal(k_noise, (rows,))
        return {"matrix": matrix, "target": target, "rho": jnp.asarray(rho)}

    def task(config, data):
        del data
        problem = lasso_problem(**config)
        return stateless(
            init=lambda key: jnp.zeros(dim),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: problem.loss(x, gradient),
            normalize=above_floor(0.0, 0.5 * jnp.sum(config["target"] ** 2)),
        )

    def optimum(config, data):
        del data
        return lasso_problem(**config).minimum(jnp.zeros(dim))

    name = f"lasso{rows}x{dim}"
    return TaskFamily(sample, task, name=name, optimum=jax.jit(optimum))


def lasso_problem(matrix: jax.Array, target: jax.Array, rho: Any) -> Composite:
    r"""The two parts of a LASSO.

    .. math:: f(x) = \tfrac12 \|W x - y\|^2, \quad L = \|W\|_2^2

    Args:
      matrix: W.
      target: y.
      rho: weight of the 1-norm.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import lasso_problem
      >>> problem = lasso_problem(jnp.eye(2), jnp.array([3.0, 4.0]), 0.1)
      >>> float(problem.value(jnp.zeros(2)))
      12.5
    """

    def smooth(x):
        return 0.5 * jnp.sum((matrix @ x - target) ** 2)

    return Composite(smooth, rho, lambda: spectral_square(matrix))


def sparse_vector(
    k_places: jax.Array, k_values: jax.Array, dim: int, nonzeros: int
) -> jax.Array:
    """`nonzeros` entries from N(0, 1) at random places, the others 0."""
    mask = jax.random.permutation(k_places, jnp.arange(dim) < nonzeros)
    return jnp.where(mask, jax.random.normal(k_values, (dim,)), 0.0)
