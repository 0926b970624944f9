"""Reverse mode through long scans: recompute instead of remember."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def checkpointed_scan(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, levels: int
) -> tuple[Any, Any]:
    """`jax.lax.scan` whose reverse mode remembers few carries.

    For T steps, `levels` 0 remembers all that every step computes; 1 the T carries, and
    recomputes each step once; n > 1 cuts the scan in about T^(1/n) pieces that are cut
    again: about n T^(1/n) carries, each step recomputed n times. Forward it is a scan
    of scans with the same arithmetic.

    Args:
      body, carry, xs: as for `jax.lax.scan`.
      levels: of checkpointing.

    Raises:
      ValueError: negative levels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from l2o.meta_train import checkpointed_scan
      >>> def loss(x):
      ...     body = lambda c, t: (jnp.sin(c) * x, c)
      ...     return checkpointed_scan(body, x, jnp.arange(100), levels=2)[0]
      >>> gradient = jax.grad(loss)(0.9)

    Source: "Training deep nets with sublinear memory cost" (Chen et al., 2016).
    """
    if levels < 0:
        raise ValueError(f"levels of checkpointing must be >= 0, not {levels}")
    length = len(jax.tree.leaves(xs)[0])
    if levels == 0:
        return jax.lax.scan(body, carry, xs)
    if levels == 1 or length < 4:
        return jax.lax.scan(jax.checkpoint(body), carry, xs)
    # Pieces of equal size, and what is left over as one shorter piece.
    size = math.ceil(length ** ((levels - 1) / levels))
    pieces, rest = divmod(length, size)

    def piece(carry, xs):
        return checkpointed_scan(body, carry, xs, levels - 1)

    first = jax.tree.map(
        lambda x: x[: pieces * size].reshape(pieces, size, *x.shape[1:]), xs
    )
    carry, ys = jax.lax.scan(jax.checkpoint(piece), carry, first)
    ys = jax.tree.map(lambda y: y.reshape(pieces * size, *y.shape[2:]), ys)
    if rest:
        last = jax.tree.map(lambda x: x[pieces * size :], xs)
        carry, tail = jax.checkpoint(piece)(carry, last)
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail)
    return carry, ys
