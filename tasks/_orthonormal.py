"""Random orthonormal columns, without LAPACK."""

import jax
import jax.numpy as jnp


def orthonormal(key: jax.Array, rows: int, cols: int) -> jax.Array:
    """Uniformly distributed orthonormal columns, (rows, cols), rows >= cols.

    Gaussian columns, each made orthogonal to those before it, twice. Programs with
    several batched QR decompositions wait for ever on CPUs with few cores (JAX 0.10);
    this is arithmetic only.

    Source: Gram-Schmidt; Giraud et al., "The loss of orthogonality in the Gram-Schmidt
    orthogonalization process" (2005), on why twice is enough.
    """
    gaussian = jax.random.normal(key, (rows, cols))

    def column(i, q):
        v = gaussian[:, i]
        for _ in range(2):
            v = v / jnp.sqrt(jnp.sum(v**2))
            v = v - q @ (q.T @ v)
        return q.at[:, i].set(v / jnp.sqrt(jnp.sum(v**2)))

    return jax.lax.fori_loop(0, cols, column, jnp.zeros((rows, cols), gaussian.dtype))
