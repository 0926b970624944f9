"""One step of `learnable_muon`, on stacks of tensors."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._stacks import Stack, in_order
from .._tensors import (
    finite_gradient,
    is_held,
    is_whole,
    sees_whole_tensors,
    square_root,
    sums,
    tree_of,
    widened,
)
from ..rule._orthogonal import Orthogonal, orthogonalise
from ..rule._rule import GRADIENT_BOUND
from ..rule._scales import has_moved
from ..wrappers._hypergradient import cosine_of, kept, products
from ..wrappers._settle import sizes

_NORM_EPS, _ROOT_EPS = 1e-9, 1e-8
_LARGE = 2**18
_PARTS = 8  # more of them save memory and take longer to compile
_NEVER = 1e30


class Tensor(NamedTuple):
    """What there is of one tensor, with an axis or more."""

    grad: jax.Array
    param: jax.Array
    momentum: jax.Array
    second: jax.Array
    last: jax.Array


class Told(NamedTuple):
    """What one tensor tells, each of shape ()."""

    cosine: jax.Array  # of the gradient and the last update
    idle: jax.Array  # whether there is no gradient now
    size: jax.Array  # of the gradient
    scale: jax.Array  # of the parameters
    trained: jax.Array  # whether there were gradients


def tensors_of(grads: Any, params: Any, state: Any) -> list[Tensor]:
    """Of all tensors with elements."""
    slots = grads, params, state.momentum, state.second, state.factors.last
    structure: Any = jax.tree.structure(grads)
    leaves = [structure.flatten_up_to(tree) for tree in slots]
    return [
        Tensor(*map(jnp.atleast_1d, x)) for x in zip(*leaves, strict=True) if x[0].size
    ]


def kind_of(x: Tensor) -> tuple[Any, ...]:
    """Tensors of one kind and shape can be stacked."""
    return tuple(part.dtype for part in x)


def stacked_of(stack: Stack, tensors: Sequence[Tensor]) -> Tensor:
    """The tensors of a stack."""
    return Tensor(*map(stack.of, zip(*tensors, strict=True)))


def told_of(stacks: Sequence[Stack], stacked: Sequence[Tensor]) -> Told:
    """What all tensors tell, each of shape (tensors,)."""
    found = []
    ready, size = None, 0
    for stack, x in zip(stacks, stacked, strict=True):
        x = x._replace(grad=_later(x.grad, ready), last=_later(x.last, ready))
        found.append(stack.each(_told, x))
        size += x.grad.size
        if size > _LARGE:
            ready, size = _entry(found[-1].size), 0
    return Told(*(in_order(stacks, x) for x in zip(*found, strict=True)))


def _told(x: Tensor) -> Told:
    largest = jnp.max(jnp.abs(_finite(x.grad)), initial=0.0)

    def parts(grad, last, param):
        grad, param = _finite(grad), param.astype(jnp.float32)
        return *products(grad, last, largest), sizes(grad), param * param

    *both, size, square = sums(parts, x.grad, x.last, x.param)
    return Told(
        cosine_of(*both),
        largest == 0,
        size / x.grad.size,
        square_root(square / x.param.size),
        has_moved(x.second),
    )


def _finite(grad: jax.Array) -> jax.Array:
    return finite_gradient(grad.astype(jnp.float32))


def moved_of(
    stacks: Sequence[Stack],
    stacked: Sequence[Tensor],
    numbers: Sequence[Any],
    scales: jax.Array,
    decay: jax.Array | None,
    orthogonal: Orthogonal,
) -> list[tuple[jax.Array, ...]]:
    """Of every stack the updates, both moments, and what is kept of the updates.

    Matrices of one shape are orthogonalised together.

    Args:
      numbers: of every stack, as theta has them.
      scales: shape (tensors,), `alpha_t e^{r + e} s`.
      decay: `alpha_t w`, if there is one.
    """
    found: list[Any] = [None] * len(stacks)
    ready = None
    for batch in _batches(stacks, stacked):
        steps = []
        for i in batch:
            before = functools.partial(_before, numbers[i], ready)
            steps.append(stacks[i].each(before, stacked[i]))
        straight: Sequence[Any] = [None] * len(batch)
        if _matrix(stacks[batch[0]], stacked[batch[0]]):
            straight = orthogonalise([step for step, *_ in steps], orthogonal)
        for i, x, (step, m, v) in zip(batch, straight, steps, strict=True):
            after = functools.partial(_after, numbers[i], decay)
            own = stacks[i].numbers(scales)
            updates, last = stacks[i].each(after, step, x, own, stacked[i].param)
            found[i] = updates, m, v, last
        if sum(stacked[i].grad.size for i in batch) > _LARGE:
            ready = _entry(found[batch[-1]][0])
    return found


def _later(x: jax.Array, ready: jax.Array | None) -> jax.Array:
    """The same, not before something is ready, so as to have its memory."""
    return x if ready is None else jnp.where(ready == _NEVER, 0, x)


def _entry(x: jax.Array) -> jax.Array | None:
    """A number that there is once there is x; None where looking would communicate."""
    return x.ravel()[0].astype(jnp.float32) if is_whole(x) else None


def _matrix(stack: Stack, x: Tensor) -> tuple[int, ...]:
    """The shape of the matrices, shorter axis first; () of vectors."""
    shape = x.grad.shape[len(stack.members) > 1 :]
    return tuple(sorted(shape[-2:])) if len(shape) > 1 else ()


def _batches(stacks: Sequence[Stack], stacked: Sequence[Tensor]) -> list[list[int]]:
    """Which stacks have matrices of one shape, the largest first.

    On one device a batch has at most a share of all elements, or one stack. So what is
    in memory at once is a share of the parameters, and the program does not grow with
    the number of tensors.
    """
    most = sum(x.grad.size for x in stacked)
    if sees_whole_tensors():
        most = max(most // _PARTS, _LARGE)
    shapes: dict[tuple[int, ...], list[list[int]]] = {}
    for i, (stack, x) in enumerate(zip(stacks, stacked, strict=True)):
        parts = shapes.setdefault(_matrix(stack, x), [[]])
        size = sum(stacked[j].grad.size for j in parts[-1])
        if parts[-1] and size + x.grad.size > most:
            parts.append([])
        parts[-1].append(i)
    return [part for shape in sorted(shapes, reverse=True) for part in shapes[shape]]


def trees_of(
    grads: Any,
    state: Any,
    stacks: Sequence[Stack],
    moved: Sequence[tuple[jax.Array, ...]],
) -> Iterator[Any]:
    """The trees of updates, moments and last updates, from those of stacks."""
    slots = grads, state.momentum, state.second, state.factors.last
    structure: Any = jax.tree.structure(grads)
    for tree, parts in zip(slots, zip(*moved, strict=True), strict=True):
        rows = [x for x in structure.flatten_up_to(tree) if x.size]
        for stack, part in zip(stacks, parts, strict=True):
            part = part.astype(rows[stack.members[0]].dtype)
            for i, x in zip(stack.members, stack.apart(part), strict=True):
                rows[i] = jnp.reshape(x, rows[i].shape)
        yield tree_of(grads, rows)


def _before(
    theta: Any, ready: jax.Array | None, x: Tensor
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """z of one tensor, zero where nothing is moved, and the new moments.

    Args:
      theta: as in `moved_of`.
      ready: what is to be made before.
      x: the tensor.
    """
    b1, b2 = (-jnp.expm1(theta[f"log_one_minus_{name}"]) for name in ("b1", "b2"))

    def moments(grad, momentum, second):
        grad = jnp.clip(finite_gradient(grad), -GRADIENT_BOUND, GRADIENT_BOUND)
        momentum = b1 * momentum + (1 - b1) * grad
        return grad, momentum, b2 * second + (1 - b2) * jnp.square(grad)

    def scaled(*slots):
        grad, momentum, second = moments(*slots)
        factor = jnp.exp(-theta["exponent"] * jnp.log(second + _ROOT_EPS))
        moved = ~is_held(momentum, second)
        return moved, *(jnp.where(moved, y * factor, 0.0) for y in (momentum, grad))

    def squares(*slots):
        moved, *parts = scaled(*slots)
        return moved, *(y * y for y in parts)

    wide = [widened(y) for y in (x.grad, x.momentum, x.second)]
    count, *totals = sums(squares, *wide, axes=_axes(x.grad))
    own, other = (_factor(total, count) for total in totals)
    grad, *old = slots = [y.numbers for y in wide]
    _, momentum, grad = scaled(_later(grad, ready), *old)
    step = own * momentum + jnp.exp(theta["log_gradient"]) * other * grad
    # Old moments are read until there is a step: then new ones can take their place.
    done = _entry(step) if step.size > _LARGE else None
    _, momentum, second = moments(*slots)
    return step, _later(momentum, done), _later(second, done)


def _after(
    theta: Any,
    decay: jax.Array | None,
    step: jax.Array,
    straight: jax.Array | None,
    scale: jax.Array,
    param: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The update, and what is kept of it.

    Args:
      theta, decay: as in `moved_of`.
      step: z.
      straight: of a matrix, what orthogonalisation made of z.
      scale: shape (), of the tensor.
      param: the parameters.
    """
    if straight is None:
        count, total = sums(lambda z: (z != 0, z * z), step, axes=_axes(step))
        direction = jnp.exp(theta["log_vectors"]) * _factor(total, count) * step
    else:

        def squares(z, straight):
            moved = z != 0
            return moved, jnp.where(moved, straight * straight, 0.0), z * z

        count, *totals = sums(squares, step, straight, axes=_axes(step))
        own, other = (_factor(total, count) for total in totals)
        other *= theta["plain"]

        def mixed(z, straight):
            return jnp.where(z != 0, own * straight + other * z, 0.0)

        square = lambda *x: (jnp.square(mixed(*x)),)
        (total,) = sums(square, step, straight, axes=_axes(step))
        direction = _factor(total, count) * mixed(step, straight)
    update = -scale * direction
    last = kept(update)
    if decay is not None:
        update -= decay * param.astype(jnp.float32)
    return update, last


def _axes(x: jax.Array) -> tuple[int, ...] | None:
    """Over which a mean is: those of a matrix."""
    return None if x.ndim <= 2 else (-2, -1)


def _factor(total: jax.Array, count: jax.Array) -> jax.Array:
    """What makes the mean of squares one, from their sum and number."""
    return lax.rsqrt(total / jnp.maximum(count, 1.0) + _NORM_EPS)
