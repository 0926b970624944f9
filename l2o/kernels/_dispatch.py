"""One update of many tensors by a per-parameter network.

There are several implementations of this one function: the rule itself in plain JAX
(`_rule`) and kernels, modules with `supports` and `update`. `l2o.backend` chooses.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tensors import map_together, sees_whole_tensors
from ..rule._accumulators import Accumulators
from ..rule._rule import (
    Rule,
    Shared,
    Tensor,
    apply_step_rules,
    held,
    update_one,
    with_decay,
)
from ._backend import chosen_backend

_STACKED = 4  # so many tensors of one shape are updated as one stack


def update_tree(
    rule: Rule,
    grads: Any,
    params: Any,
    accumulators: Accumulators,
    nn: Any,
    scale: jax.Array,
    shared: Shared,
) -> tuple[Any, Accumulators]:
    """`update_tensors` for the tensors of trees that have elements."""

    def rule_of_all(tensors):
        old = [Tensor(g, p, Accumulators(*slots)) for g, p, *slots in tensors]
        return [(u, *x) for u, x in update_tensors(rule, old, nn, scale, shared)]

    updates, *new = map_together(rule_of_all, grads, params, *accumulators)
    return updates, Accumulators(*new)


def update_tensors(
    rule: Rule,
    tensors: Sequence[Tensor],
    nn: Any,
    scale: jax.Array,
    shared: Shared,
) -> list[tuple[jax.Array, Accumulators]]:
    """The updates, to be added to the parameters, and the new accumulators.

    Args:
      rule: what is fixed.
      tensors: any number, of any shapes.
      nn: weights as `init_mlp` makes them, with a first axis: of size one, or an entry
        per tensor.
      scale: factors of the steps, shape (1,) or (tensors,).
      shared: the rest.
    """
    kernels = _kernels(chosen_backend())
    kinds: dict[bool, list[int]] = {}
    for i, tensor in enumerate(tensors):
        fits = kernels is not None and kernels.supports(rule, tensor, nn)
        kinds.setdefault(fits, []).append(i)
    results: dict[int, Any] = {}
    for fits, members in kinds.items():
        update = functools.partial(_kernel_update, kernels) if fits else _xla_update
        given = (_rows(nn, members), _rows(scale, members), shared)
        new = update(rule, [tensors[i] for i in members], *given)
        results.update(zip(members, new, strict=True))
    return [results[i] for i in range(len(tensors))]


class _Kernels(NamedTuple):
    supports: Callable
    update: Callable


def _kernels(backend: str) -> _Kernels | None:
    # Imported here: they use what JAX does not promise to keep, and Pallas takes time.
    if backend == "native":
        from . import _native

        return _Kernels(_native.supports, _native.update)
    if backend == "pallas":
        from . import _pallas

        return _Kernels(_pallas.supports, _pallas_update)
    return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pallas_update(rule, tensors, nn, scale, shared):
    from . import _pallas

    return _pallas.update(rule, tensors, nn, scale, shared)


@_pallas_update.defjvp
def _pallas_update_jvp(rule, primals, tangents):
    return jax.jvp(functools.partial(_xla_update, rule), primals, tangents)


def one_network(nn: Any) -> Any:
    """Weights of all tensors, as `update_tensors` takes them."""
    return jax.tree.map(lambda x: x[None], nn)


def _kernel_update(kernels, rule, tensors, nn, scale, shared):
    if rule.orthogonalize is None:
        return kernels.update(rule, tensors, nn, scale, shared)
    # Newton-Schulz iterations are matrix products, which XLA does.
    matrices = [i for i, tensor in enumerate(tensors) if tensor.grad.ndim > 1]
    vectors = [i for i in range(len(tensors)) if i not in matrices]
    results: dict[int, Any] = {}
    if vectors:
        plain = rule._replace(orthogonalize=None)
        given = (_rows(nn, vectors), _rows(scale, vectors), shared)
        new = kernels.update(plain, [tensors[i] for i in vectors], *given)
        results.update(zip(vectors, new, strict=True))
    if matrices:
        steps = rule._replace(
            orthogonalize=None, param_scale=False, normalize_step=False
        )
        one = -jnp.ones(1, jnp.float32)
        given = (_rows(nn, matrices), one, shared._replace(weight_decay=0.0))
        new = kernels.update(steps, [tensors[i] for i in matrices], *given)
        for i, (step, accumulators) in zip(matrices, new, strict=True):
            grad, param, _ = tensors[i]
            still = held(rule, grad, accumulators)
            step = apply_step_rules(rule, step, param, accumulators, still)
            factor = scale[i % len(scale)]
            results[i] = with_decay(-(factor * step), param, shared), accumulators
    return [results[i] for i in range(len(tensors))]


def _xla_update(rule, tensors, nn, scale, shared):
    def together(members):
        stack = jax.tree.map(lambda *x: jnp.stack(x), *[tensors[i] for i in members])
        # Of what is one for all, no copies are made.
        rows = _rows(nn, members), _rows(scale, members)
        common = [_row(x, 0) if _count(x) == 1 else None for x in rows]
        own = [None if _count(x) == 1 else x for x in rows]

        def one(member):
            tensor, *rows = member
            network, factor = (
                y if x is None else x for x, y in zip(rows, common, strict=True)
            )
            return update_one(rule, tensor, network, factor, shared)

        # A loop, because XLA would cut what is vectorised into the members again.
        new = jax.lax.map(one, (stack, *own))
        return [_row(new, k) for k in range(len(members))]

    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        shapes.setdefault(tensor.grad.shape, []).append(i)
    results: dict[int, Any] = {}
    for members in shapes.values():
        # What is sharded must not be stacked: it would be gathered.
        if len(members) >= _STACKED and sees_whole_tensors():
            # What XLA has to compile grows with the shapes, not with the tensors.
            results.update(zip(members, together(members), strict=True))
            continue
        for i in members:
            given = tensors[i], _row(nn, i % _count(nn)), _row(scale, i % _count(scale))
            results[i] = update_one(rule, *given, shared)
    return [results[i] for i in range(len(tensors))]


def _count(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def _rows(tree: Any, members: Sequence[int]) -> Any:
    """Those of the members; one row is all there is if it is everyone's."""
    count = _count(tree)
    if count == 1 or list(members) == list(range(count)):
        return tree
    return jax.tree.map(lambda x: x[np.array(members)], tree)
