"""One step of `learnable_muon`, on stacks of tensors."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._stacks import Stack, in_order
from .._tensors import (
    finite_gradient,
    is_held,
    masked_normalise,
    sees_whole_tensors,
    tree_of,
)
from ..rule._orthogonal import Orthogonal, orthogonalise
from ..rule._rule import GRADIENT_BOUND
from ..rule._scales import has_moved, root_mean_square
from ..wrappers._hypergradient import cosine, is_idle, kept
from ..wrappers._settle import mean_size

_NORM_EPS, _ROOT_EPS = 1e-9, 1e-8
_LARGE = 2**18
_PARTS = 8  # more of them save memory and take longer to compile
_NEVER = 1e30


class Tensor(NamedTuple):
    """What there is of one tensor, in float32 and with an axis or more."""

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
    """The tensors of a stack, in float32, with gradients that are finite."""
    # What is done before tensors are stacked is a program for each of them.
    x = Tensor(*map(stack.of, zip(*tensors, strict=True)))
    x = Tensor(*(part.astype(jnp.float32) for part in x))
    return x._replace(grad=finite_gradient(x.grad))


def told_of(stacks: Sequence[Stack], stacked: Sequence[Tensor]) -> Told:
    """What all tensors tell, each of shape (tensors,)."""
    found = []
    ready = None
    for stack, x in zip(stacks, stacked, strict=True):
        found.append(stack.each(_told, _later(x, ready)))
        ready = _ready(x.grad.size, found[-1].size, ready)
    return Told(*(in_order(stacks, x) for x in zip(*found, strict=True)))


def _told(x: Tensor) -> Told:
    return Told(
        cosine(x.grad, x.last),
        is_idle(x.grad),
        mean_size(x.grad),
        root_mean_square(x.param),
        has_moved(x.second),
    )


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
            before = functools.partial(_before, numbers[i])
            steps.append(stacks[i].each(before, _later(stacked[i], ready)))
        straight: Sequence[Any] = [None] * len(batch)
        if _matrix(stacks[batch[0]], stacked[batch[0]]):
            straight = orthogonalise([step for step, *_ in steps], orthogonal)
        for i, x, (step, moved, m, v) in zip(batch, straight, steps, strict=True):
            after = functools.partial(_after, numbers[i], decay)
            own = stacks[i].numbers(scales)
            updates, last = stacks[i].each(after, step, moved, x, own, stacked[i].param)
            found[i] = updates, m, v, last
        size = sum(stacked[i].grad.size for i in batch)
        ready = _ready(size, found[batch[-1]][0], ready)
    return found


def _later(x: Tensor, ready: jax.Array | None) -> Tensor:
    """The same, not before something is ready, so as to have its memory."""
    if ready is None:
        return x
    return x._replace(grad=jnp.where(ready == _NEVER, 0.0, x.grad))


def _ready(size: int, result: jax.Array, ready: jax.Array | None) -> jax.Array | None:
    """A number of the result, if many elements were worked on; else as before."""
    large = sees_whole_tensors() and size > _LARGE
    return result.ravel()[0] if large else ready


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


def _before(theta: Any, x: Tensor) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """z of one tensor, what of it is moved, and the new moments."""
    b1, b2 = (-jnp.expm1(theta[f"log_one_minus_{name}"]) for name in ("b1", "b2"))
    grad = jnp.clip(x.grad, -GRADIENT_BOUND, GRADIENT_BOUND)
    momentum = b1 * x.momentum + (1 - b1) * grad
    second = b2 * x.second + (1 - b2) * jnp.square(grad)
    moved = ~is_held(momentum, second)
    factor = jnp.exp(-theta["exponent"] * jnp.log(second + _ROOT_EPS))
    step = _normalised(momentum * factor, moved)
    step += jnp.exp(theta["log_gradient"]) * _normalised(grad * factor, moved)
    return step, moved, momentum, second


def _after(
    theta: Any,
    decay: jax.Array | None,
    step: jax.Array,
    moved: jax.Array,
    straight: jax.Array | None,
    scale: jax.Array,
    param: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The update, and what is kept of it.

    Args:
      theta, decay: as in `moved_of`.
      step: z.
      moved: entries that count.
      straight: of a matrix, what orthogonalisation made of z.
      scale: shape (), of the tensor.
      param: the parameters.
    """
    if straight is None:
        direction = jnp.exp(theta["log_vectors"]) * _normalised(step, moved)
    else:
        plain = theta["plain"] * _normalised(step, moved)
        direction = _normalised(_normalised(straight, moved) + plain, moved)
    update = -scale * direction
    last = kept(update)
    return (update if decay is None else update - decay * param), last


def _normalised(x: jax.Array, moved: jax.Array) -> jax.Array:
    return masked_normalise(x, moved, _NORM_EPS, None if x.ndim <= 2 else (-2, -1))
