"""The search for fast matrix multiplication."""

import jax
import jax.numpy as jnp
import numpy as np

from .._base import TaskFamily, log_scaled, stateless

# Ranks from which on an exact algorithm is known; below them only the residual is.
_SOLVED = {2: 7, 3: 23}


def matmul_algorithm(size: int = 2, rank: int = 7) -> TaskFamily:
    r"""An algorithm for n x n matrices with k multiplications.

    .. math:: f(A, B) = \min_C \sum_{ij} \|p_{ij} C - \mathrm{vec}(E_i E_j)\|^2, \quad
              p_{ij} = a_i \odot b_j

    A and B are (n^2, k) with rows a_i, b_j, E_i the unit matrices; the best C is a
    least-squares solution, by a QR decomposition where the published code inverts the
    normal matrix. Where f is 0 the bilinear algorithm (A, B, C) multiplies matrices.
    Columns start as uniform unit vectors.

    Args:
      size: n.
      rank: k, from `n^2` to `n^3`; published are 5 to 8 for n = 2 and 19 to 24 for
        n = 3.

    The meta-loss is `log_scaled` by n^3, what C = 0 costs. `optimum` is 0 where an
    exact algorithm is known, k >= 7 (Strassen's) and k >= 23, and otherwise None.

    Raises:
      ValueError: a rank out of its range.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("matmul_algorithm", size=2, rank=7)

    Source: "Learned optimizers that scale and generalize" (Wichrowska et al., 2017).
    """
    square = size**2
    if not square <= rank <= size**3:
        raise ValueError(
            f"rank must be from {square} to {size**3} for size {size}, not {rank}"
        )
    units = np.eye(square).reshape(square, size, size)
    products = np.einsum("aij,bjk->abik", units, units).reshape(square**2, square)

    def init(key):
        a, b = jax.random.normal(key, (2, square, rank))
        return {
            name: x / jnp.linalg.norm(x, axis=0) for name, x in (("a", a), ("b", b))
        }

    def loss(params, key, batch):
        del key, batch
        pairs = params["a"][:, None] * params["b"]
        pairs = pairs.reshape(square**2, rank)
        # There is no QR decomposition in fewer bits.
        wide = jnp.promote_types(pairs.dtype, jnp.float32)
        basis, _ = jnp.linalg.qr(pairs.astype(wide))
        target = jnp.asarray(products, basis.dtype)
        return jnp.sum((target - basis @ (basis.T @ target)) ** 2)

    normalize = log_scaled(float(size**3))
    solved = rank >= _SOLVED.get(size, size**3)
    return TaskFamily(
        sample=lambda key: {},
        task=lambda config, data: stateless(
            init, lambda key, split: (), loss, normalize
        ),
        name=f"matmul{size}-{rank}",
        optimum=(lambda config, data: jnp.zeros(())) if solved else None,
    )
