"""Tensors of one shape as one array: programs grow with shapes, not with tensors."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._tensors import sees_whole_tensors

_LARGEST = 2**12  # elements of what is stacked: a stack is a copy


class Stack(NamedTuple):
    """Which tensors are worked on as one; one that is alone is left as it is."""

    members: tuple[int, ...]

    def of(self, xs: Sequence[jax.Array]) -> jax.Array:
        """These of all tensors, along a new first axis."""
        chosen = [xs[i] for i in self.members]
        return chosen[0] if len(chosen) == 1 else jnp.stack(chosen)

    def numbers(self, vector: jax.Array) -> jax.Array:
        """These of a number per tensor: shape (), or (members,)."""
        if len(self.members) == 1:
            return vector[self.members[0]]
        return vector[np.array(self.members)]

    def each(self, f: Callable[..., Any], *stacks: Any) -> Any:
        """What f makes of each tensor."""
        return f(*stacks) if len(self.members) == 1 else jax.vmap(f)(*stacks)

    def apart(self, stack: jax.Array) -> list[jax.Array]:
        """The inverse of `of`."""
        if len(self.members) == 1:
            return [stack]
        return [stack[i] for i in range(len(self.members))]


def stacks_of(tensors: Sequence[jax.Array], kinds: Sequence[Hashable]) -> list[Stack]:
    """Small tensors of one shape and kind together, all others alone.

    Args:
      tensors: where they may be sharded, all are alone.
      kinds: of each.
    """
    whole = sees_whole_tensors()
    groups: dict[Hashable, list[int]] = {}
    for i, (x, kind) in enumerate(zip(tensors, kinds, strict=True)):
        small = whole and x.size <= _LARGEST
        groups.setdefault((x.shape, kind) if small else i, []).append(i)
    return [Stack(tuple(members)) for members in groups.values()]


def in_order(stacks: Sequence[Stack], numbers: Sequence[jax.Array]) -> jax.Array:
    """A number per tensor, from the numbers of all stacks."""
    order = [i for stack in stacks for i in stack.members]
    every = jnp.concatenate([jnp.atleast_1d(x) for x in numbers])
    return every[np.argsort(order)]
