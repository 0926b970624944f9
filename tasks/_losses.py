"""Losses of supervised tasks."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    r"""Mean softmax cross-entropy.

    .. math:: \frac{1}{n} \sum_i \log \sum_c e^{z_{ic}} - z_{i y_i}

    Args:
      logits: z, shape (..., C).
      labels: y, integers from 0 to C - 1, shape (...).

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import cross_entropy
      >>> round(float(cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7]))), 3)
      2.303
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.sum(one_hot * logits, -1))


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the examples whose largest logit is that of their label.

    Args:
      logits: shape (..., C).
      labels: integers from 0 to C - 1, shape (...).

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import accuracy
      >>> float(accuracy(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1, 1])))
      0.5
    """
    return jnp.mean(jnp.argmax(logits, -1) == labels)
