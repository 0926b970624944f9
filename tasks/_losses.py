"""Losses of supervised tasks."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy: logits (..., C), integer labels (...)."""
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.sum(one_hot * logits, -1))


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the labels (...) that the largest of the logits (..., C) names."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)
