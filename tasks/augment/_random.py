"""Random trees, and sums over many of them that hold one at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def normal_like(key: jax.Array, tree: Any) -> Any:
    """Independent N(0, 1) entries of the same shapes."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def sum_over_draws(
    term: Callable[[jax.Array], Any], key: jax.Array, count: int | jax.Array, tree: Any
) -> Any:
    """Sum of `term(key_k)` over `count` keys; terms have the shapes of `tree`.

    With a traced count it is a loop that has no reverse derivative.
    """
    # Random numbers are cheaper to draw again than to keep for a derivative.
    term = jax.checkpoint(term, prevent_cse=False)

    def add(k, total):
        return jax.tree.map(jnp.add, total, term(jax.random.fold_in(key, k)))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), tree)
    return jax.lax.fori_loop(0, count, add, zeros)
