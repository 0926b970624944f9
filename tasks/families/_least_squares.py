"""Ill-conditioned linear least squares."""

import jax
import jax.numpy as jnp

from .._base import TaskFamily, stateless
from .._orthonormal import orthonormal
from ._variants import above_floor


def least_squares(
    rows: int = 100,
    dim: int = 20,
    *,
    log10_condition: float = 2.0,
    noise: float = 0.1,
    batch_size: int | None = None,
) -> TaskFamily:
    r"""Linear regression with a design of given singular values.

    .. math:: f(x) = \tfrac{1}{2m} \|A x - b\|^2, \quad A = \sqrt m\, U S V^T, \quad
              S_{ii} = 10^{-\kappa (i-1)/(d-1)}, \quad b = A x^* + \sigma n

    x* and n are N(0, 1), U and V random orthonormal columns, x(0) = 0. The Hessian's
    eigenvalues go from 1 down to `10^(-2 kappa)`.

    Args:
      rows: m, at least `dim`.
      dim: d.
      log10_condition: kappa, of A; the Hessian's condition number is `10^(2 kappa)`.
      noise: sigma.
      batch_size: rows in a batch, drawn with replacement; all m by default.

    The meta-loss is `log_scaled` by the loss at 0. `optimum` is that of the expected
    loss, by a QR decomposition.

    Raises:
      ValueError: fewer rows than coordinates.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("least_squares", rows=30, dim=5, batch_size=8)

    Source: the textbook's; see Bottou, Curtis & Nocedal, "Optimization methods for
    large-scale machine learning" (2018).
    """
    if rows < dim:
        raise ValueError(f"least_squares needs rows >= dim, not {rows} < {dim}")

    def sample(key):
        k_left, k_right, k_solution, k_noise = jax.random.split(key, 4)
        left = orthonormal(k_left, rows, dim)
        right = orthonormal(k_right, dim, dim)
        values = 10.0 ** jnp.linspace(0, -log10_condition, dim)
        matrix = jnp.sqrt(1.0 * rows) * (left * values) @ right.T
        target = matrix @ jax.random.normal(k_solution, (dim,))
        target += noise * jax.random.normal(k_noise, (rows,))
        return {"matrix": matrix, "target": target}

    def task(config, data):
        del data

        def batch(key, split):
            del split
            if batch_size is None:
                return config
            index = jax.random.randint(key, (batch_size,), 0, rows)
            return {name: array[index] for name, array in config.items()}

        def loss(x, key, batch):
            del key
            return 0.5 * jnp.mean((batch["matrix"] @ x - batch["target"]) ** 2)

        normalize = above_floor(0.0, 0.5 * jnp.mean(config["target"] ** 2))
        return stateless(lambda key: jnp.zeros(dim), batch, loss, normalize)

    def optimum(config, data):
        del data
        basis, _ = jnp.linalg.qr(config["matrix"])
        target = config["target"]
        return 0.5 * jnp.mean((target - basis @ (basis.T @ target)) ** 2)

    return TaskFamily(sample, task, name=f"least_squares{rows}x{dim}", optimum=optimum)
