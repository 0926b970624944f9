"""Derivatives of native kernels against differences, and against plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import few
from kernel_operands import (
    FEW_SHAPES,
    RULES,
    SMOOTH_SHAPES,
    assert_close,
    assert_equal,
    cotangents_of,
    edge_operands,
    gradient,
    in_part,
    layout_of,
    needs_kernels,
    operands_of,
    pull,
    quick,
    slow,
    some_entries,
    split,
    stacked,
    update,
)

from l2o.kernels import _native


@functools.partial(quick, static_argnums=0)
def plain_gradient(layout, operands, cotangents):
    return jax.vjp(functools.partial(_native._oracle, layout), *operands)[1](cotangents)


def assert_gradient(layout, networks=1, entries=24, close=1e-5):
    """Of a product with all results, entry by entry, against central differences."""
    operands = operands_of(layout, networks=networks)
    cotangents = cotangents_of(update(layout, *operands))
    actual = gradient(layout, operands, cotangents)
    wide = [np.float64(x) for x in operands]
    by_tensor = split(layout, [np.float64(x) for x in cotangents], False)
    owner = [None] * 3
    for i, tensor in enumerate(split(layout, operands)):
        owner += [i] * len(tensor)
    rng = np.random.default_rng(0)
    for k, x in enumerate(wide):
        parts = by_tensor if owner[k] is None else [by_tensor[owner[k]]]
        weights = [y for part in parts for y in part]
        flat = x.reshape(-1)
        chosen = rng.choice(x.size, min(x.size, entries), replace=False)
        slopes = []
        for i in chosen:
            ends, start = [], flat[i]
            for end in (start + 1e-6, start - 1e-6):
                flat[i] = end
                results = slow(layout, wide, owner[k])
                ends.append(sum(np.vdot(a, b) for a, b in zip(results, weights)))
            flat[i] = start
            slopes.append((ends[0] - ends[1]) / 2e-6)
        assert np.any(slopes)
        found = np.ravel(np.asarray(actual[k]))[chosen]
        assert_close([found], [slopes], close, least=1.0)


@needs_kernels
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("kind", RULES)
def test_gradients_equal_differences_of_the_slow_form(kind, width):
    layout = layout_of(kind, SMOOTH_SHAPES, width)
    assert_gradient(layout, networks=1 if width == 4 else len(layout.shapes))


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "shapes", "width"),
    [("velo", ((17,),), 16), ("small_fc", ((4, 3, 2),), 4)],
    ids=["wide", "trailing_axis"],
)
def test_gradients_without_a_kernel(kind, shapes, width):
    layout = layout_of(kind, shapes, width)
    operands = operands_of(layout)
    text = gradient.lower(layout, operands, update(layout, *operands)).as_text()
    assert "l2o_update_vjp" not in text
    assert_gradient(layout)


@needs_kernels
@pytest.mark.parametrize("kind", few(RULES, ["velo"]))
def test_gradients_of_long_sums(kind):
    layout = layout_of(kind, ((70, 61), (1500,)))
    operands = operands_of(layout)
    cotangents = cotangents_of(update(layout, *operands))
    plain = plain_gradient(layout, operands, cotangents)
    assert_close(gradient(layout, operands, cotangents), plain, 2e-4, least=1.0)


@needs_kernels
def test_gradients_at_ties():
    layout = layout_of("velo", FEW_SHAPES)
    operands = operands_of(layout)
    for k in (3, 15):
        bounds = np.float32([-1.5, -0.1, 0.1, 1.5])
        operands[k] = np.resize(bounds, operands[k].shape)
    cotangents = cotangents_of(update(layout, *operands))
    plain = plain_gradient(layout, operands, cotangents)
    assert_close(gradient(layout, operands, cotangents), plain, 1e-5, least=1.0)


@needs_kernels
@pytest.mark.parametrize("kind", few(RULES, ["celo2"]))
def test_gradients_of_what_is_held(kind):
    layout = layout_of(kind, FEW_SHAPES)
    operands = edge_operands(layout, in_part)
    cotangents = cotangents_of(update(layout, *operands))
    plain = plain_gradient(layout, operands, cotangents)
    assert_close(gradient(layout, operands, cotangents), plain, 1e-5, least=1.0)


@needs_kernels
def test_gradients_under_vmap():
    layout, entries = some_entries((5, 7), (17,), (2, 3, 4))
    cotangents = [cotangents_of(update(layout, *entry)) for entry in entries]
    expected = [gradient(layout, *x) for x in zip(entries, cotangents)]

    def product(cotangents, *operands):
        return sum(map(jnp.vdot, _native._update(layout, *operands), cotangents))

    every = range(1, 1 + len(entries[0]))
    of_each = jax.jit(jax.vmap(jax.grad(product, every)))
    results = jax.device_get(of_each(stacked(cotangents), *stacked(entries)))
    for i, one in enumerate(expected):
        assert_equal([x[i] for x in results], list(one))

    @jax.jit
    @jax.grad
    def of_all(decays, weights):
        # Decays are everyone's, so that their gradients are added.
        return jnp.sum(
            jax.vmap(product, (0, None, 0, *[0] * (len(every) - 2)))(
                stacked(cotangents), decays, weights, *stacked(entries)[2:]
            )
        )

    _, weights, *_ = stacked(entries)
    total = of_all(entries[0][0], weights)
    assert_close([total], [sum(np.float64(one[0]) for one in expected)], 1e-6)


def moved(operands, *steps):
    """Operands in float64, along directions."""
    operands = [np.float64(x) for x in operands]
    for size, direction in steps:
        operands = [x + size * np.float64(d) for x, d in zip(operands, direction)]
    return operands


@needs_kernels
def test_forward_mode():
    layout = layout_of("velo", ((2, 3),))
    operands, direction = (operands_of(layout, seed=seed) for seed in range(2))
    f = functools.partial(_native._update, layout)
    results, slopes = quick(lambda *x: jax.jvp(f, *x))(operands, direction)
    ends = [slow(layout, moved(operands, (h, direction))) for h in (1e-6, -1e-6)]
    assert_close(results, slow(layout, operands))
    assert_close(slopes, [(a - b) / 2e-6 for a, b in zip(*ends)], 1e-5)


@needs_kernels
def test_second_derivatives():
    layout = layout_of("celo2", ((3,),))
    operands, first, second = (operands_of(layout, seed=seed) for seed in range(3))
    cotangents = cotangents_of(update(layout, *operands))
    slopes = quick(lambda *x: jax.jvp(lambda *o: pull(layout, o, cotangents), *x))
    _, changes = slopes(operands, second)

    def product(*steps):
        results = slow(layout, moved(operands, *steps))
        return sum(np.vdot(a, np.float64(b)) for a, b in zip(results, cotangents))

    h = 1e-4
    for k, x in enumerate(first):
        only = [x if i == k else np.zeros_like(y) for i, y in enumerate(first)]
        corners = [
            a * b * product((a * h, only), (b * h, second))
            for a in (1, -1)
            for b in (1, -1)
        ]
        expected = sum(corners) / (4 * h * h)
        assert abs(np.vdot(changes[k], x) - expected) < 1e-3 * max(abs(expected), 1)
