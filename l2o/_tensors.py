"""Applies an update rule that is written for one tensor to a whole tree."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType

HELD_FACTOR = 1e8  # a first momentum this much below the root of v tells of no gradient
_LARGE, _PART = 2**18, 2**16  # elements: what is cut, and what is summed at once


def map_tensors(
    rule: Callable[..., tuple],
    grads: Any,
    params: Any,
    *slots: tuple[Any, ...],
    given: Sequence[Sequence[Any]] = (),
) -> tuple[Any, ...]:
    """Calls `rule(grad, param, *slot leaves, *given)` for each tensor of `grads`.

    The rule sees float32 tensors of at least one axis: scalars are given as shape (1,)
    and restored, and tensors without elements are passed through. It returns the update
    and the new slots.

    Args:
      rule: `(grad, param, slot, ..., given, ...) -> (update, slot, ...)`, each slot a
        tuple with one entry per decay.
      grads, params: trees of one structure.
      *slots: each a tuple of trees like `grads`, one per decay; the shapes of their
        leaves may differ from the gradients'.
      given: sequences with one entry per tensor that has elements, handed to the rule
        as they are.

    Returns:
      The tree of updates and, per slot, the new tuple of trees.
    """

    def each(tensors):
        rest = zip(*given, strict=True) if given else itertools.repeat(())
        return [rule(*old, *more) for old, more in zip(tensors, rest, strict=False)]

    return map_together(each, grads, params, *slots)


def map_together(
    rule: Callable[[list[tuple]], Sequence[tuple]],
    grads: Any,
    params: Any,
    *slots: tuple[Any, ...],
) -> tuple[Any, ...]:
    """As `map_tensors`, with one call of the rule for the list of all tensors.

    Args:
      rule: `[(grad, param, slot, ...), ...] -> [(update, slot, ...), ...]`.
      grads, params, *slots: as in `map_tensors`.
    """
    leaves = jax.tree.leaves(grads)
    structure: Any = jax.tree.structure(grads)
    param_leaves = structure.flatten_up_to(params)
    slot_leaves = [[structure.flatten_up_to(t) for t in slot] for slot in slots]
    states = [
        tuple(tuple(tree[i] for tree in slot) for slot in slot_leaves)
        for i in range(len(leaves))
    ]
    seen = [i for i, grad in enumerate(leaves) if grad.size]
    new = rule(
        [
            jax.tree.map(_as_vector, (leaves[i], param_leaves[i], *states[i]))
            for i in seen
        ]
    )
    results: list[tuple] = [
        (grad, *state) for grad, state in zip(leaves, states, strict=True)
    ]
    for i, result in zip(seen, new, strict=True):
        like = (leaves[i], *states[i])
        results[i] = jax.tree.map(
            lambda x, ref: jnp.reshape(x, ref.shape), result, like
        )

    updates = structure.unflatten([r[0] for r in results])
    new_slots = tuple(
        tuple(
            structure.unflatten([r[k + 1][d] for r in results])
            for d in range(len(slot))
        )
        for k, slot in enumerate(slots)
    )
    return updates, *new_slots


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """Zeros of the shapes, dtypes (by default) and shardings in `tree`.

    Under jit too, where a constant depends on nothing and the compiler would put all of
    it on one device.
    """

    def zeros(x):
        constant = jnp.zeros_like(x, dtype=dtype)
        if not isinstance(x, jax.core.Tracer):
            return constant
        # Decided by the compiler, when it has already propagated shardings.
        return jnp.where(True, constant, x.astype(constant.dtype))

    return jax.tree.map(zeros, tree)


def sharded_like(x: jax.Array, param: Any) -> jax.Array:
    """`x`, the first axes of which are those of `param` and are sharded as these."""
    zeros = zeros_like(param, x.dtype)
    return x + lax.expand_dims(zeros, range(zeros.ndim, x.ndim))


def sees_whole_tensors() -> bool:
    """Whether what is traced here is certain not to be sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names:
        return jax.device_count() == 1
    axes = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    return all(kind == AxisType.Manual or size == 1 for kind, size in axes)


def is_whole(x: jax.Array) -> bool:
    """Whether a tensor is certain not to be sharded, nor said to be."""
    return sees_whole_tensors() and not any(jax.typeof(x).sharding.spec)


def with_elements(tree: Any) -> list[Any]:
    """The leaves that `map_tensors` gives to its rule, in its order."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.size]


class Wide(NamedTuple):
    """Numbers in float32, which `sums` reads from where they are stored."""

    numbers: jax.Array  # float32
    stored: jax.Array


def widened(x: jax.Array) -> Wide:
    """Of an array of any type; where it is used often, derivatives meet in float32."""
    return Wide(x.astype(jnp.float32), x)


def sums(
    f: Callable[..., tuple[jax.Array, ...]],
    *xs: jax.Array | Wide,
    axes: tuple[int, ...] | None = None,
) -> tuple[jax.Array, ...]:
    """Sums over entries of the arrays that `f(*xs)` returns, in float32.

    On CPUs a large tensor is summed a part at a time, because XLA would write all that
    is summed to memory.

    Args:
      f: acts entry by entry.
      xs: of one shape; of those that are `Wide`, f sees the numbers.
      axes: over which to sum, and which are kept with a size of one; None for all, with
        results of shape ().
    """
    keep = axes is not None
    seen = [x.numbers if isinstance(x, Wide) else x for x in xs]
    stored = [x.stored if isinstance(x, Wide) else x for x in xs]

    def at_once(xs, stored):
        del stored
        return tuple(jnp.sum(y, axes, keepdims=keep, dtype=jnp.float32) for y in f(*xs))

    def in_parts(xs, stored):
        rows = [x.reshape(parts, -1) for x in xs]
        bits = [_bits(x.reshape(parts, -1)) for x in stored]

        def one(part):
            return at_once([_read(*pair) for pair in zip(*part, strict=True)], None)

        return tuple(jnp.sum(y) for y in lax.map(one, (rows, bits)))

    parts = 1 if keep else _parts(seen)
    if parts == 1:
        return at_once(seen, stored)
    return lax.platform_dependent(seen, stored, cpu=in_parts, default=at_once)


def _bits(x: jax.Array) -> jax.Array | None:
    """Of bfloat16: XLA would convert all of it to float32 before a loop."""
    if x.dtype != jnp.bfloat16:
        return None
    return lax.bitcast_convert_type(x, jnp.uint16)


def _read(x: jax.Array, bits: jax.Array | None) -> jax.Array:
    """The numbers x, from their bits in bfloat16 where these are given."""
    return x if bits is None else _from_bits(x, bits)


@jax.custom_jvp
def _from_bits(x: jax.Array, bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.bfloat16).astype(x.dtype)


@_from_bits.defjvp
def _from_bits_jvp(primals, tangents):
    return _from_bits(*primals), tangents[0]


def _parts(xs: Sequence[jax.Array]) -> int:
    """Into how many parts of one size tensors are cut; 1 where none will do."""
    size = xs[0].size
    if size <= _LARGE or not all(map(is_whole, xs)):
        return 1
    if not any(isinstance(x, jax.core.Tracer) for x in xs):
        return 1  # every call would compile
    least = -(-size // _PART)
    return next((n for n in range(least, 8 * least) if size % n == 0), 1)


def is_held(momentum: jax.Array, second: Any = 0.0) -> jax.Array:
    """Entries that have had no gradient, or none for hundreds of steps.

    `|m| <= 1e-8 sqrt(v)`, of moments that have seen this gradient. An entry of ordinary
    training practically never is so small.
    """
    size = momentum * HELD_FACTOR
    return size * size <= second


def square_root(x: jax.Array) -> jax.Array:
    """The root, with a derivative of zero at zero."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def clip_by_global_norm(grads: Any, max_norm: float) -> Any:
    """Scales `grads` to that norm where they have a larger one; not where it is NaN."""
    norm = square_root(
        optax.tree.norm(optax.tree.cast(grads, jnp.float32), squared=True)
    )
    scale = jnp.where(norm > max_norm, max_norm / jnp.maximum(norm, max_norm), 1.0)
    return jax.tree.map(lambda g: g * scale, grads)


def _as_vector(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    return x.reshape(1) if x.ndim == 0 else x


_LARGEST = 1e15  # so that a sum of 1e8 squares is finite in float32


def gradient_bound(bound: float | None) -> float:
    """The size that entries of gradients are cut to where the rule cuts to `bound`."""
    return _LARGEST if bound is None else min(bound, _LARGEST)


def finite_gradient(grad: jax.Array, bound: float | None = None) -> jax.Array:
    """The gradient with NaN as zero, cut to the bound and to 1e15 at most.

    So a rule's squares stay finite, and one bad entry cannot end a run.

    Args:
      grad: a gradient; of float16, which is too narrow, the result is float32.
      bound: of the size of its entries; None for 1e15.
    """
    grad = grad.astype(state_dtype(grad))
    size = gradient_bound(bound)
    return jnp.clip(jnp.where(jnp.isnan(grad), 0.0, grad), -size, size)


def state_dtype(x: Any) -> Any:
    """The type of the state of a parameter: its own, but float32 for float16.

    A square of 300 is infinite in float16.
    """
    return jnp.float32 if x.dtype == jnp.float16 else x.dtype


def state_zeros(params: Any, widest: Any = jnp.float32) -> Any:
    """Zeros like the parameters, of their `state_dtype`, sharded as they are.

    Args:
      widest: what float32 becomes.
    """

    def zeros(p):
        dtype = state_dtype(p)
        return zeros_like(p, widest if dtype == jnp.float32 else dtype)

    return jax.tree.map(zeros, params)


def state_rows(params: Any) -> int:
    """How many rows the state of these parameters has.

    One for each tensor with elements; one without any, because checkpoints hold no
    empty arrays.
    """
    return max(sum(leaf.size > 0 for leaf in jax.tree.leaves(params)), 1)


def rows_of(grads: Any, tree: Any) -> list[jax.Array]:
    """The tensors of `tree`, float32, in the order in which a recurrent state has rows.

    Tensors without elements have no row: their means would be nan.

    Args:
      grads: decides the structure, and by the sizes of its leaves what has a row.
      tree: of the same structure; its leaves keep their shapes.
    """
    leaves = jax.tree.leaves(grads)
    structure: Any = jax.tree.structure(grads)
    return [
        jnp.asarray(x, jnp.float32)
        for x, grad in zip(structure.flatten_up_to(tree), leaves, strict=True)
        if grad.size
    ]


def tree_of(grads: Any, rows: Sequence[jax.Array]) -> Any:
    """The inverse of `rows_of`; tensors without elements are those of `grads`."""
    leaves = jax.tree.leaves(grads)
    structure: Any = jax.tree.structure(grads)
    rest = iter(rows)
    return structure.unflatten([next(rest) if x.size else x for x in leaves])
