"""Statistics of whole tensors, in plain JAX."""

import jax
import jax.numpy as jnp


def plain_mean_and_variance(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The means of arrays, and the means of squared distances from these."""
    means = [jnp.mean(x) for x in arrays]
    variances = [
        jnp.mean((x - mean) ** 2) for x, mean in zip(arrays, means, strict=True)
    ]
    return jnp.stack(means), jnp.stack(variances)
