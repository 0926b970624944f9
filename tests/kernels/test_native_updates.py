"""Updates by native kernels against a slow form in float64, and against plain JAX."""

import numpy as np
import pytest
from kernel_operands import (
    EDGE_SHAPES,
    EDGES,
    FEW_SHAPES,
    LARGE,
    RULES,
    SHAPES,
    assert_close,
    assert_equal,
    cotangents_of,
    edge_operands,
    gradient,
    layout_of,
    needs_kernels,
    one,
    operands_of,
    quick,
    slow,
    split,
    update,
)

from l2o.kernels import _native

WIDTHS = (4, 8, 16, 32)
oracle = quick(_native._oracle, static_argnums=0)


@needs_kernels
@pytest.mark.parametrize("per_tensor", [False, True], ids=["shared", "per_tensor"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", RULES)
def test_updates_equal_the_slow_form(kind, width, per_tensor):
    shapes = SHAPES if per_tensor else SHAPES + LARGE
    layout = layout_of(kind, shapes, width)
    assert len(layout.shapes) > 12
    operands = operands_of(layout, networks=len(layout.shapes) if per_tensor else 1)
    # That of a single element may be near zero.
    assert_close(update(layout, *operands), slow(layout, operands), least=0.1)


@needs_kernels
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("kind", RULES)
def test_edges_equal_plain_jax(kind, edge):
    layout = layout_of(kind, EDGE_SHAPES)
    operands = edge_operands(layout, EDGES[edge])
    expected = oracle(layout, *operands)
    assert_close(update(layout, *operands), expected)
    assert all(np.all(np.isfinite(x)) for x in expected)


@needs_kernels
def test_what_is_pushed_equals_plain_jax():
    layout = layout_of("celo2", EDGE_SHAPES)
    layout = layout._replace(rule=layout.rule._replace(holds=False))
    for edge in ("in_part", "zeros"):
        operands = edge_operands(layout, EDGES[edge])
        results = update(layout, *operands)
        assert_close(results, oracle(layout, *operands))
        assert all(np.all(x[0] != 0) for x in split(layout, results, False))


@needs_kernels
@pytest.mark.parametrize("kind", RULES)
def test_nan_counts_as_zero(kind):
    def nan_and_zero(shapes):
        layout = layout_of(kind, shapes)
        edges = (lambda g, old, x=x: (one(x)(g, old)[0], old) for x in (np.nan, 0.0))
        return layout, *(edge_operands(layout, edge) for edge in edges)

    layout, bad, clean = nan_and_zero((*EDGE_SHAPES, (200, 40)))
    assert_equal(update(layout, *bad), update(layout, *clean))
    layout, bad, clean = nan_and_zero(FEW_SHAPES)
    cotangents = cotangents_of(update(layout, *clean))
    found, expected = (gradient(layout, x, cotangents) for x in (bad, clean))
    for x, y, given in zip(found, expected, bad):
        assert_equal(x[~np.isnan(given)], y[~np.isnan(given)])
        assert_equal(x[np.isnan(given)], 0.0)


@needs_kernels
@pytest.mark.parametrize("shape", [(70_000, 1), (1, 70_000), (40_000, 3), (9000, 70)])
def test_sums_of_many_equal_terms(shape):
    # Each is rounded the same way, so that errors of a long float sum would add up.
    layout = layout_of("small_fc", [shape])
    operands = operands_of(layout)
    operands[3] = np.full(shape, 0.7, np.float32)
    for k in range(9, 15):
        operands[k] = np.full(operands[k].shape, 0.3, np.float32)
    assert_close(update(layout, *operands)[1:], slow(layout, operands)[1:], 4e-6)


@needs_kernels
def test_updates_are_deterministic():
    layout = layout_of("velo", (*SHAPES, *LARGE), 8)
    operands = operands_of(layout)
    once = update(layout, *operands)
    for _ in range(3):  # threads share the tensors differently
        assert_equal(update(layout, *operands), once)
