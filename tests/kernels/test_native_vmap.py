"""Native kernels under `vmap` and `scan`."""

import functools

import jax
import numpy as np
import pytest
from kernel_operands import (
    assert_equal,
    needs_kernels,
    some_entries,
    split,
    stacked,
    update,
)

from l2o.kernels import _native


@pytest.fixture(scope="module")
def some():
    """A layout of three tensors, and three lists of operands."""
    return some_entries((5, 7), (17,), (4, 3, 2))


@needs_kernels
@pytest.mark.parametrize("mapped", ["all", "weights", "tensors"])
def test_vmap(some, mapped):
    layout, entries = some
    over = {
        "all": lambda k: True,
        "weights": lambda k: k == 1,
        "tensors": lambda k: k >= 3,
    }[mapped]
    indices = range(len(entries[0]))
    given = [x if over(k) else x[0] for k, x in enumerate(stacked(entries))]
    axes = [0 if over(k) else None for k in indices]
    f = functools.partial(_native._update, layout)
    results = jax.device_get(jax.jit(jax.vmap(f, axes))(*given))
    for i, entry in enumerate(entries):
        entry = [entry[k] if over(k) else entries[0][k] for k in indices]
        assert_equal([x[i] for x in results], update(layout, *entry))


@needs_kernels
def test_nested_vmap(some):
    layout, entries = some
    # Of each of three networks, each of three lists of tensors; an axis that is last.
    shared = entries[0][:3]
    weights = np.stack([entry[1] for entry in entries])
    tensors = [np.stack(x, -1) for x in zip(*[entry[3:] for entry in entries])]

    def f(weights, tensors):
        return _native._update(layout, shared[0], weights, shared[2], *tensors)

    both = jax.vmap(jax.vmap(f, (None, -1)), (0, None))
    results = jax.device_get(jax.jit(both)(weights, tensors))
    for i in range(3):
        for k, entry in enumerate(entries):
            given = [shared[0], weights[i], shared[2], *entry[3:]]
            assert_equal([x[i, k] for x in results], update(layout, *given))


@needs_kernels
def test_scan(some):
    layout, entries = some
    grads = jax.tree.map(
        lambda *x: np.stack(x), *[[t[0] for t in split(layout, e)] for e in entries]
    )

    def step(tensors, grads):
        given = [[g, *tensor[1:]] for g, tensor in zip(grads, tensors)]
        operands = [*entries[0][:3], *(x for tensor in given for x in tensor)]
        results = _native._update(layout, *operands)
        new = split(layout, results, False)
        moved = [[g, p + u[0], *u[1:]] for (g, p, *_), u in zip(given, new)]
        return moved, [u[0] for u in new]

    start = split(layout, entries[0])
    scanned = jax.jit(lambda x: jax.lax.scan(step, x, grads))(start)
    end, updates = jax.device_get(scanned)
    step, tensors = jax.jit(step), start
    for i in range(3):
        tensors, u = step(tensors, [g[i] for g in grads])
        assert_equal([x[i] for x in updates], u)
    assert_equal(end, tensors)
