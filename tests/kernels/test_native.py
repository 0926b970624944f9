"""The native kernels against a slow form in float64, and against plain JAX."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import few, normal, python_path
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from slow_forms import SlowTensor, network, normalise

import l2o
from l2o.kernels import _backend, _library, _native, _primitive
from l2o.kernels._dispatch import update_tensors
from l2o.kernels._statistics import mean_and_variance
from l2o.rule._accumulators import Accumulators, Decays, factored_axes
from l2o.rule._features import FEATURES
from l2o.rule._rule import Rule, Shared, Tensor

MISSING = _library.unavailable()
if MISSING is None and jax.default_backend() != "cpu":
    MISSING = "the kernels are for CPUs"
needs_kernels = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING}")

WITHOUT_CLIP = tuple(f for f in FEATURES if f not in ("clip_g", "g_norm"))
NOT_OF_VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col", "fac_m")
OF_VECTORS = tuple(f for f in FEATURES if f not in NOT_OF_VECTORS)
# The kinds of rule that there are, with larger factors: what is small is not seen.
RULES = {
    "small_fc": Rule(WITHOUT_CLIP, WITHOUT_CLIP, 0.1, vector_eps=1e-6),
    "velo": Rule(FEATURES, FEATURES, 0.1, grad_bound=1.5, param_scale=True),
    "celo2": Rule(
        FEATURES,
        OF_VECTORS,
        0.3,
        rms_eps=1e-8,
        norm_eps=1e-9,
        grad_bound=1000.0,
        normalize_step=True,
        normalized_axes="last",
    ),
}
WIDTHS = (4, 8, 16, 32)
SHAPES = (
    *[(1,), (15,), (16,), (17,), (40,)],
    *[(1, 1), (1, 9), (9, 1), (5, 7), (16, 32), (18, 33), (33, 18), (9, 64), (9, 65)],
    *[(2, 5, 7), (3, 3, 4, 5)],  # the last two axes are factored
    (5, 4, 3, 3),  # others follow the factored ones
    (6, 3, 8),  # another is between them
    (2, 6, 2, 8, 3),  # both
)
# Of several chunks: of rows, of columns, of a vector, with trailing axes.
LARGE = ((300, 260), (7, 2100), (70000,), (200, 130, 3), (4, 800, 3))
CLOSE = 3e-6  # of the largest entry

# Optimised machine code would be used once or twice.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
update = jax.jit(_native._update, static_argnums=0)
oracle = quick(_native._oracle, static_argnums=0)


def pull(layout, operands, cotangents):
    """Cotangents of all operands."""
    return jax.vjp(functools.partial(_native._update, layout), *operands)[1](cotangents)


gradient = quick(pull, static_argnums=0)


@functools.partial(quick, static_argnums=0)
def plain_gradient(layout, operands, cotangents):
    return jax.vjp(functools.partial(_native._oracle, layout), *operands)[1](cotangents)


def fits(rule, shape):
    last = {len(shape) - 2, len(shape) - 1}
    two = len(shape) <= 2 or rule.normalized_axes == "all"
    return two or set(factored_axes(shape)) == last


def layout_of(kind, shapes, width=4):
    rule = RULES[kind]
    return _native._Layout(rule, tuple(s for s in shapes if fits(rule, s)), width)


def operands_of(layout, *, networks=1, seed=0):
    """Gradients of sizes that differ, and positive second moments."""
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal
    rule, h = layout.rule, layout.width
    weights = 0.3 * draw((networks, _native._planes(rule) * h + h * h + 4 * h + 2))
    factors = [0.7, 0.1] + 0.1 * draw((networks, 2))
    operands = [np.array([0.9, 0.99, 0.5, 0.95, 0.8, 0.99, 0.5]), weights, factors]
    for shape in layout.shapes:
        axes = factored_axes(shape)
        row, *col = (
            [shape] if axes is None else [_reduced(shape, d) for d in axes[::-1]]
        )
        operands += [draw(shape) * np.exp(0.5 * draw(shape)), draw(shape)]
        operands += [draw(shape) for _ in range(3)]
        operands += [0.1 + draw(x) ** 2 for x in (shape, *[row] * 3, *col * 3)]
    return [np.float32(x) for x in operands]


def _reduced(shape, axis):
    return (*shape[:axis], 1, *shape[axis + 1 :])


def slow(layout, operands, only=None):
    """What `_update` computes, in NumPy; of all tensors, or of one."""
    decays, weights, factors, *rest = (np.asarray(x, np.float64) for x in operands)
    results = []
    for i, shape in enumerate(layout.shapes):
        count = 9 if len(shape) == 1 else 12
        flat, rest = rest[:count], rest[count:]
        if only in (None, i):
            row, factor = weights[i % len(weights)], factors[i % len(factors)]
            results += _slow_tensor(layout, shape, decays, row, factor, flat)
    return results


def _slow_tensor(layout, shape, decays, weights, factor, flat):
    rule, h = layout.rule, layout.width
    names = rule.features if len(shape) > 1 else rule.vector_features
    sizes = [(_native._planes(rule), h), (h,), (h, h), (h,), (h, 2), (2,)]
    ends = np.cumsum([np.prod(size) for size in sizes])
    parts = zip(np.split(weights, ends[:-1]), sizes)
    keys = ("w0", "b0", "w1", "b1", "w2", "b2")
    nn = dict(zip(keys, (x.reshape(size) for x, size in parts)))

    g, p, *accumulators = flat
    tensor = SlowTensor((), (), ())
    tensor.d = np.split(decays, [3, 4])
    kinds = [accumulators[a:b] for a, b in ((0, 3), (3, 4), (4, 7), (7, 10))]
    tensor.m, tensor.rms, tensor.row = (np.stack(x, -1) for x in kinds[:3])
    tensor.col = np.stack(kinds[3], -1) if kinds[3] else tensor.row
    if rule.grad_bound is not None:
        g = np.clip(g, -rule.grad_bound, rule.grad_bound)
    tensor.see(g)
    eps = {"rms_eps": rule.rms_eps, "vector_eps": rule.vector_eps}
    over = tuple(range(len(shape)))
    if rule.normalized_axes == "last":
        over = over[-2:]
    x = normalise(tensor.features(g, p, names, **eps), over, rule.norm_eps)
    out = network(nn, x)
    step = out[..., 0] * np.exp(rule.exp_mult * out[..., 1])
    if rule.param_scale:
        step = step * np.sqrt(np.mean(p**2) + 1e-9)
    if rule.normalize_step:
        step = normalise(step, over, rule.norm_eps)
    new = [tensor.m, tensor.rms, tensor.row, *([tensor.col] if kinds[3] else [])]
    new = [x for group in new for x in np.moveaxis(group, -1, 0)]
    return [-(factor[0] * step + factor[1] * p), *new]


def assert_close(actual, expected, close=CLOSE, least=0.0):
    """Equal but for `close` of the largest, and the same where not finite."""
    assert len(actual) == len(expected)
    for i, (x, y) in enumerate(zip(actual, expected)):
        x, y = np.float64(x), np.float64(y)
        finite = np.isfinite(y)
        size = max(np.max(np.abs(y), where=finite, initial=0), least)
        np.testing.assert_allclose(
            x, y, rtol=0, atol=close * size, equal_nan=True, err_msg=f"{i}"
        )


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def cotangents_of(results):
    rng = np.random.default_rng(5)
    return [np.float32(rng.standard_normal(x.shape)) for x in results]


def split(layout, values, of_operands=True):
    """What belongs to each tensor, of operands or of results."""
    ends, start = [], 3 * of_operands
    for shape in layout.shapes:
        ends.append(start)
        start += (9 if len(shape) == 1 else 12) - (not of_operands)
    return [values[a:b] for a, b in zip(ends, [*ends[1:], start])]


# --- Updates ---


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


EDGE_SHAPES = ((5, 7), (17,), (4, 3, 2), (2, 3, 4))
FEW_SHAPES = EDGE_SHAPES[:2]


def of_gradients(f):
    """Changes gradients only."""
    return lambda grad, old: (f(grad), old)


def of_new(f):
    """Changes gradients and forgets those before."""
    return lambda grad, old: (f(grad), [np.zeros_like(x) for x in old])


def one(value):
    """Sets the second element of a gradient."""

    def changed(grad):
        grad = grad.copy()
        grad.flat[1] = value
        return grad

    return of_gradients(changed)


def in_part(grad, old):
    """No gradient, now and before, in the first two of three entries."""
    grad, *momenta = (np.where(_part(x.shape), x, 0) for x in (grad, *old[:3]))
    rms = np.where(_part(grad.shape), old[3], 0)
    return np.float32(grad), [*map(np.float32, (*momenta, rms)), *old[4:]]


def _part(shape):
    return np.arange(np.prod(shape)).reshape(shape) % 3 == 2


EDGES = {
    "nothing": of_gradients(lambda g: g),
    "zeros": of_new(np.zeros_like),
    "zero_gradients": of_gradients(np.zeros_like),
    "infinity": one(np.inf),
    "minus_infinity": one(-np.inf),
    "bound": one(-1.5),
    "large": of_gradients(lambda g: 1e18 * g),
    "new_large": of_new(lambda g: 1e18 * g),
    "overflow": of_gradients(lambda g: 1e30 * g),
    "alternating": of_gradients(lambda g: np.copysign(np.float32(1e38), g)),
    "nan": one(np.nan),
    "small": of_gradients(lambda g: 1e-20 * g),
    "new_small": of_new(lambda g: 1e-20 * g),
    "in_part": in_part,
}


def edge_operands(layout, edge, only=None):
    operands = operands_of(layout)
    tensors = split(layout, operands)
    for i, (grad, param, *old) in enumerate(tensors):
        if only in (None, i):
            grad, old = edge(grad, old)
            tensors[i] = [grad, param, *old]
    return [*operands[:3], *(x for tensor in tensors for x in tensor)]


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


# --- Transformations ---


def some_entries(*shapes):
    layout = layout_of("small_fc", shapes)
    return layout, [operands_of(layout, networks=3, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def some():
    """A layout of three tensors, and three lists of operands."""
    return some_entries((5, 7), (17,), (4, 3, 2))


def stacked(entries):
    return [np.stack(x) for x in zip(*entries)]


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


# --- Derivatives ---


# Vectors with a rest of lanes, in either order, of several blocks, one between.
SMOOTH_SHAPES = ((17,), (5, 18), (20, 3), (2, 2, 3, 4), (4, 2, 5))


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


# --- Statistics ---


STATISTICS_SHAPES = ((1,), (5,), (3, 7), (4096,), (4097,), (17, 4099), (300, 301))


def arrays_of(seed):
    """Their means are large beside their deviations, so that squares would cancel."""
    rng = np.random.default_rng(seed)
    return [np.float32(100 + rng.standard_normal(s)) for s in STATISTICS_SHAPES]


@needs_kernels
def test_means_and_variances():
    entries = [arrays_of(seed) for seed in range(2)]
    means, variances = jax.jit(jax.vmap(mean_and_variance))(stacked(entries))
    for k, entry in enumerate(entries):
        wide = [np.float64(x) for x in entry]
        assert_close([means[k]], [[x.mean() for x in wide]], 1e-6)
        assert_close([variances[k]], [[x.var() for x in wide]], 1e-5)


@needs_kernels
def test_means_and_variances_of_what_is_not_finite():
    arrays = [np.float32([1, np.inf, 2]), np.float32([np.nan, 1]), np.float32([3, 5])]
    means, variances = mean_and_variance(arrays)
    np.testing.assert_array_equal(means, [np.inf, np.nan, 4])
    np.testing.assert_array_equal(variances, [np.nan, np.nan, 1])


@needs_kernels
def test_derivatives_of_means_and_variances():
    arrays = arrays_of(0)[:3]
    weights = np.float32(np.arange(1, 7).reshape(2, 3))

    def product(arrays):
        return jnp.vdot(jnp.stack(mean_and_variance(arrays)), weights)

    for x, slope, of_mean, of_variance in zip(
        arrays, jax.grad(product)(arrays), *weights
    ):
        expected = (of_mean + 2 * of_variance * (x - np.mean(np.float64(x)))) / x.size
        assert_close([slope], [expected], 1e-5)


# --- Optimizers ---


HYPER = {"lstm_hidden_size": 8, "param_inits": 2, "exp_mult": 0.03, "step_mult": 0.1}
OPTIMIZERS = {
    "small_fc": l2o.small_fc(exp_mult=0.1, step_mult=0.1),
    "elo": l2o.elo(hidden_size=4, learning_rate=0.1, weight_decay=0.1),
    "celo": l2o.celo(**HYPER, mix_layers=False),
    "velo": l2o.velo(**HYPER, ff_mult=3.0),
    "celo2_base": l2o.celo2_base(learning_rate=0.1, exp_mult=0.1, orthogonalize=False),
    "celo2": l2o.celo2(learning_rate=0.1, weight_decay=0.1),
    "scaled": l2o.celo2_base(
        learning_rate=0.1,
        exp_mult=0.1,
        orthogonalize=False,
        param_scale_mult=True,
        normalize_output=False,
    ),
    "mulo": l2o.mulo(hidden_size=16, exp_mult=0.1, step_mult=0.1),
}


def small_tree(seed):
    shapes = {"bias": (6,), "blocks": (2, 4, 5), "matrix": (5, 3), "scalar": ()}
    tree = normal(seed, shapes)
    tree["blocks"] *= jnp.array([1.0, 10.0]).reshape(2, 1, 1)
    return {**tree, "bias": tree["bias"].astype(jnp.bfloat16)}


def three_updates(optimizer, backend):
    """All updates and the last state; and whether kernels made them."""
    rng = np.random.default_rng(1)
    theta = jax.tree.map(
        lambda x: x + np.float32(0.1 * rng.standard_normal(x.shape)),
        optimizer.init_theta(jax.random.key(0)),
    )

    def step(theta, params, state, grads, loss):
        tx = optimizer.bind(theta, num_steps=40)
        updates, state = tx.update(grads, state, params, value=loss)
        return updates, optax.apply_updates(params, updates), state

    params = small_tree(0)
    state = optimizer.bind(theta, num_steps=40).init(params)
    everything = []
    with l2o.backend(backend):
        step = quick(step).lower(theta, params, state, params, 1.0)
        text, step = step.as_text(), step.compile()
    for seed, loss in enumerate((2.0, 0.7, 1.3)):
        given = theta, params, state, small_tree(1 + seed), np.float32(loss)
        updates, params, state = step(*given)
        everything.append(updates)
    return everything, state, "l2o_update" in text


@needs_kernels
@pytest.mark.parametrize("name", few(OPTIMIZERS, ["small_fc", "velo", "celo2"]))
def test_optimizers_are_the_same_in_plain_jax(name):
    expected, state, with_kernels = three_updates(OPTIMIZERS[name], "xla")
    assert not with_kernels
    *actual, with_kernels = three_updates(OPTIMIZERS[name], None)
    assert with_kernels
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves((expected, state))):
        assert x.dtype == y.dtype
        # bfloat16 has eight bits; orthogonalisation amplifies rounding.
        close = 1e-2 if x.dtype == jnp.bfloat16 else 2e-4 if name == "celo2" else 3e-5
        assert_close([x], [y], close, least=1e-3)


@needs_kernels
@pytest.mark.parametrize("name", ["celo2", "small_fc", "velo"])
def test_double_precision_elsewhere(name):
    optimizer = OPTIMIZERS[name]
    params = normal(0, {"bias": (6,), "matrix": (5, 3)})

    def first(theta):
        tx = optimizer.bind(theta, num_steps=40)
        return tx.update(params, tx.init(params), params, value=1.0)[0]

    theta = optimizer.init_theta(jax.random.key(0))
    expected = quick(first)(theta)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), theta)
        for given in (theta, wide):
            actual = jax.block_until_ready(quick(first)(given))
            assert_close(*map(jax.tree.leaves, (actual, expected)), 1e-4)


# --- Other processes ---


def in_child(function, path, **environment):
    """Calls a function of this module in another process; the arrays that it saves."""
    code = f"import test_native; test_native.{function}({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": python_path(Path(__file__).parent),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(path) as arrays:
        return dict(arrays)


def results_of_kernels():
    """With every kind of instruction: all rules, and rests of lanes of all sizes."""
    results = {}
    for kind in RULES:
        for width in (8, 16):
            layout = layout_of(kind, SHAPES + LARGE[:1], width)
            results[f"{kind} {width}"] = update(layout, *operands_of(layout))
        for name, edge in EDGES.items():
            layout = layout_of(kind, EDGE_SHAPES)
            results[f"{kind} {name}"] = update(layout, *edge_operands(layout, edge))
        layout = layout_of(kind, SMOOTH_SHAPES, 8)
        operands = operands_of(layout)
        cotangents = cotangents_of(update(layout, *operands))
        results[f"{kind} gradient"] = gradient(layout, operands, cotangents)
    return results


def save_results_of_kernels(path):
    arrays = {
        f"{name} {i}": x
        for name, group in results_of_kernels().items()
        for i, x in enumerate(group)
    }
    np.savez(path, instructions=_library.instructions(), **arrays)


@pytest.fixture(scope="module")
def own_results():
    return results_of_kernels()


@needs_kernels
@pytest.mark.parametrize("instructions", few(["generic", "avx2"], ["generic"]))
def test_other_instructions_compute_the_same(instructions, own_results, tmp_path):
    known = _library.INSTRUCTIONS
    if known.index(instructions) > known.index(_library.instructions()):
        pytest.skip(f"this processor has no {instructions}")
    if not _library._path(instructions).exists():
        pytest.skip(f"the compiler made no kernels for {instructions}")
    path = tmp_path / "results.npz"
    found = in_child("save_results_of_kernels", path, L2O_INSTRUCTIONS=instructions)
    assert found.pop("instructions") == instructions
    assert len(found) == sum(map(len, own_results.values()))
    for name, group in own_results.items():
        actual = [found[f"{name} {i}"] for i in range(len(group))]
        close = 1e-5 if "gradient" in name else 2 * CLOSE
        assert_close(actual, group, close, least=1.0 if "gradient" in name else 0.1)


SMALL_FC = l2o.small_fc(exp_mult=0.1)


def of_four(theta, params, seen=None):
    """The first updates of four trees of parameters."""

    def first(params):
        if seen is not None:
            seen.append(l2o.chosen_backend())
        tx = SMALL_FC.bind(theta)
        return tx.update(params, tx.init(params), params)[0]

    return jax.vmap(first)(params)


def gradient_of_four(theta, params):
    def total(theta):
        updates = of_four(theta, params)
        # What all devices have meets what one has in another call, too.
        _, (spread, *_) = mean_and_variance([theta["nn"]["b0"], params["vector"]])
        return spread + sum(
            jnp.vdot(u, p) for u, p in zip(*map(jax.tree.leaves, (updates, params)))
        )

    return jax.grad(total)(theta)


def four():
    params = normal(0, {"matrix": (4, 5, 3), "vector": (4, 6)})
    return SMALL_FC.init_theta(jax.random.key(0)), params


def save_on_two_devices(path):
    assert jax.device_count() == 2
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    inside, outside = [], []
    shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("d")))
    each = jax.jit(shard(functools.partial(of_four, seen=inside), out_specs=P("d")))
    # The derivative by what all devices have is summed over them.
    slopes = jax.jit(shard(gradient_of_four, out_specs=P()))
    text = each.lower(*four()).as_text()
    plain = jax.jit(functools.partial(of_four, seen=outside)).lower(*four()).as_text()
    np.savez(
        path,
        *jax.tree.leaves([each(*four()), slopes(*four())]),
        inside=inside[0],
        outside=outside[0],
        kernels=["l2o_update" in x for x in (text, plain)],
    )


@needs_kernels
def test_shard_map_on_two_devices(tmp_path):
    path = tmp_path / "results.npz"
    found = in_child("save_on_two_devices", path, JAX_NUM_CPU_DEVICES="2")
    assert (found.pop("inside"), found.pop("outside")) == ("native", "xla")
    assert [*found.pop("kernels")] == [True, False]
    expected = jax.tree.leaves(
        [jax.jit(f)(*four()) for f in (of_four, gradient_of_four)]
    )
    assert_close([found[f"arr_{i}"] for i in range(len(found))], expected, 1e-6)


def velo_step(params, state, grads):
    """One update, and its derivative by the parameters."""
    optimizer = OPTIMIZERS["velo"]
    theta = jax.tree.map(jnp.asarray, _velo_theta())

    def updated(params):
        tx = optimizer.bind(theta, num_steps=40)
        updates, new = tx.update(grads, state, params, value=jnp.float32(1.0))
        return sum(map(jnp.sum, jax.tree.leaves(updates))), (updates, new)

    (_, new), slopes = jax.value_and_grad(updated, has_aux=True)(params)
    return jax.tree.leaves((new, slopes))


@functools.cache
def _velo_theta():
    return jax.device_get(OPTIMIZERS["velo"].init_theta(jax.random.key(0)))


RELOAD = """
import sys
import jax, numpy as np
folder = sys.argv[1]
with open(folder + "/step", "rb") as f:
    step = jax.export.deserialize(bytearray(f.read()))
with np.load(folder + "/given.npz") as arrays:
    given = [arrays[name] for name in arrays]
np.savez(folder + "/found.npz", *step.call(*given))
assert not any(name.split(".")[0] == "l2o" for name in sys.modules)
"""


@needs_kernels
def test_what_is_exported_runs_without_this_package(tmp_path):
    params, grads = (normal(i, {"matrix": (5, 3), "vector": (6,)}) for i in range(2))
    state = OPTIMIZERS["velo"].bind(_velo_theta(), num_steps=40).init(params)
    given, structure = jax.tree.flatten((params, state, grads))
    step = quick(lambda *leaves: velo_step(*structure.unflatten(leaves)))
    text = step.lower(*given).as_text()
    for target in ("l2o_update", "l2o_update_vjp", "l2o_statistics"):
        assert f"custom_call @{target}(" in text
    exported = jax.export.export(step, platforms=("cpu", "tpu", "cuda"))(*given)
    assert "custom_call @l2o" not in exported.mlir_module()
    assert_close(exported.call(*given), step(*given), 2e-5, least=1e-3)
    (tmp_path / "step").write_bytes(exported.serialize())
    np.savez(tmp_path / "given.npz", *given)
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "found.npz") as arrays:
        found = [arrays[name] for name in arrays]
    assert_close(found, step(*given), 2e-5, least=1e-3)


@needs_kernels
def test_a_jax_that_does_not_say_what_it_exports_has_kernels():
    ctx = type("", (), {"module_context": object()})()
    assert not _primitive.exports(ctx)


# --- The choice ---


DEFAULT = "native" if MISSING is None else "xla"


@pytest.fixture
def forgotten():
    """Kernels are looked for anew, and so they are afterwards."""

    def forget():
        for found in (_library._load, _library.unavailable, _backend.why_no_native):
            found.cache_clear()

    forget()
    yield
    forget()


def test_unknown_backend(monkeypatch):
    known = "known: native, pallas, xla"
    with pytest.raises(ValueError, match=f"unknown backend 'nonsense'; {known}"):
        l2o.backend("nonsense")
    monkeypatch.setenv("L2O_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=f"unknown L2O_BACKEND 'nonsense'; {known}"):
        l2o.chosen_backend()


def test_backend_is_of_the_scope_then_of_the_environment(monkeypatch):
    assert l2o.chosen_backend() == DEFAULT
    with l2o.backend("pallas"):
        assert l2o.chosen_backend() == "pallas"
        with l2o.backend("xla"):
            assert l2o.chosen_backend() == "xla"
            with l2o.backend(None):
                assert l2o.chosen_backend() == DEFAULT
        assert l2o.chosen_backend() == "pallas"
    monkeypatch.setenv("L2O_BACKEND", "xla")
    assert l2o.chosen_backend() == "xla"
    with l2o.backend("pallas"):
        assert l2o.chosen_backend() == "pallas"


@pytest.mark.parametrize(
    ("sizes", "kinds", "whole"),
    [
        ((1, 1), "AE", True),
        ((2, 2), "MM", True),
        ((2, 1), "MA", True),
        ((2, 2), "MA", False),
        ((2, 1), "AM", False),
        ((2,), "E", False),
    ],
)
def test_kernels_see_whole_tensors_only(sizes, kinds, whole):
    letters = {"A": AxisType.Auto, "E": AxisType.Explicit, "M": AxisType.Manual}
    types = tuple(letters[kind] for kind in kinds)
    mesh = AbstractMesh(sizes, ("a", "b")[: len(sizes)], axis_types=types)
    with jax.sharding.use_abstract_mesh(mesh):
        assert l2o.chosen_backend() == (DEFAULT if whole else "xla")
        with l2o.backend("pallas"):
            assert l2o.chosen_backend() == ("pallas" if whole else "xla")


def test_what_is_compiled_is_kept_per_backend():
    traced = []

    @jax.jit
    def f(x):
        traced.append(l2o.chosen_backend())
        return x

    for name in ("xla", "pallas", "xla", None, "pallas", None):
        with l2o.backend(name):
            f(1.0)
    assert traced == ["xla", "pallas", DEFAULT]


@pytest.mark.parametrize("there", [False, True], ids=["missing", "broken"])
def test_without_kernels_plain_jax_is_used(forgotten, there, monkeypatch, tmp_path):
    path = tmp_path / "generic.so"
    if there:
        path.write_bytes(b"no library")
    monkeypatch.setattr(_library, "_path", lambda name: path)
    reason = _library.unavailable()
    assert ("generic.so" if there else "for want of a C++ compiler") in reason
    assert l2o.chosen_backend() == "xla"
    assert l2o.native_kernels() is None
    with pytest.raises(ValueError, match="no native kernels: ") as error:
        l2o.backend("native")
    assert reason in str(error.value)


@needs_kernels
def test_without_registration_plain_jax_is_used(forgotten, monkeypatch):
    def refused(*_, **__):
        raise TypeError("no such platform")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refused)
    assert l2o.chosen_backend() == "xla"
    reason = "no native kernels: the installed jaxlib refuses them: no such platform"
    with pytest.raises(ValueError, match=reason):
        l2o.backend("native")


HIDDEN = """
import sys
sys.modules["{module}"] = None  # as if this JAX did not have it
import jax, jax.numpy as jnp, l2o
tx = l2o.load("small_fc_mixed", num_steps=10)
params = jnp.ones((3, 2))
updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
assert jnp.all(jnp.isfinite(updates)) and l2o.chosen_backend() == "xla"
try:
    l2o.backend("{backend}")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("backend", "module"),
    [
        pytest.param("native", "jax.extend.core", marks=needs_kernels),
        ("pallas", "jax.experimental.pallas"),
    ],
)
def test_kernels_need_more_of_jax_than_the_rest(backend, module):
    code = HIDDEN.format(backend=backend, module=module)
    if backend == "pallas":
        code = code.replace('== "xla"', '!= "pallas"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = f"no {backend} kernels: this JAX lacks what they need (ModuleNotFoundError"
    assert done.stdout.startswith(said)


@needs_kernels
def test_unknown_instructions(forgotten, monkeypatch):
    monkeypatch.setenv("L2O_INSTRUCTIONS", "sse9")
    known = "known: generic, avx2, avx512"
    with pytest.raises(ValueError, match=f"unknown L2O_INSTRUCTIONS 'sse9'; {known}"):
        l2o.backend("native")
    assert l2o.chosen_backend() == "xla"


@needs_kernels
def test_kernels_are_the_best_that_were_built(forgotten, monkeypatch, tmp_path):
    built = _library._path

    def path(name):
        return built(name) if name == "generic" else tmp_path / "none"

    # What is in use in this process stays.
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)
    monkeypatch.setattr(_library, "_path", path)
    assert _library.instructions() == l2o.native_kernels() == "generic"


# --- The foreign-function interface, and what is compiled ---


# Structures as we declare them and as XLA does, and which of their fields are ours.
STRUCTURES = {
    ("Extension", "Extension_Base"): "struct_size type next",
    ("Version", "Api_Version"): (
        "struct_size extensions:extension_start major:major_version minor:minor_version"
    ),
    ("Metadata", "Metadata"): "struct_size api_version traits",
    ("MetadataExtension", "Metadata_Extension"): "base:extension_base metadata",
    ("ErrorCreateArgs", "Error_Create_Args"): (
        "struct_size extensions:extension_start message code:errc"
    ),
    ("ErrorDestroyArgs", "Error_Destroy_Args"): (
        "struct_size extensions:extension_start error"
    ),
    ("ScheduleArgs", "ThreadPool_Schedule_Args"): (
        "struct_size extensions:extension_start context:ctx task data"
    ),
    ("NumThreadsArgs", "ThreadPool_NumThreads_Args"): (
        "struct_size extensions:extension_start context:ctx num_threads"
    ),
    ("Api", "Api"): (
        "struct_size extensions:extension_start api_version internal:internal_api "
        "error_create:XLA_FFI_Error_Create error_destroy:XLA_FFI_Error_Destroy "
        "schedule:XLA_FFI_ThreadPool_Schedule "
        "num_threads:XLA_FFI_ThreadPool_NumThreads"
    ),
    ("Buffer", "Buffer"): (
        "struct_size extensions:extension_start dtype data rank dims"
    ),
    ("Array", "Array"): "dtype size data",
    ("ByteSpan", "ByteSpan"): "data:ptr size:len",
    ("Values", "Args"): (
        "struct_size extensions:extension_start size types values:args"
    ),
    ("Values", "Rets"): (
        "struct_size extensions:extension_start size types values:rets"
    ),
    ("Attributes", "Attrs"): (
        "struct_size extensions:extension_start size types names values:attrs"
    ),
    ("CallFrame", "CallFrame"): (
        "struct_size extensions:extension_start api context:ctx stage args rets attrs"
    ),
}
# To these XLA may append fields; the others are parts of structures, or ours to fill.
GROWING = ("Metadata", "Api", "CallFrame")
CONSTANTS = {
    "kMetadataExtension": "Extension_Metadata",
    "kInvalidArgument": "Error_Code_INVALID_ARGUMENT",
    "kExecute": "ExecutionStage_EXECUTE",
    "11": "DataType_F32",  # as handlers.h has it
    "kMajor": "API_MAJOR",
}


def declarations():
    lines = ["#include <cstddef>", '#include "xla_ffi.h"']
    lines += ['#include "xla/ffi/api/c_api.h"', "using namespace xla_ffi;"]
    for (ours, theirs), fields in STRUCTURES.items():
        theirs = f"XLA_FFI_{theirs}"
        compare = "<=" if ours in GROWING else "=="
        lines.append(f"static_assert(sizeof({ours}) {compare} sizeof({theirs}));")
        for field in fields.split():
            a, _, b = field.partition(":")
            a, b = f"{ours}, {a}", f"{theirs}, {b or a}"
            lines.append(f"static_assert(offsetof({a}) == offsetof({b}));")
            a, b = (f"sizeof({x.replace(', ', '::')})" for x in (a, b))
            lines.append(f"static_assert({a} == {b});")
    for ours, theirs in CONSTANTS.items():
        lines.append(f"static_assert({ours} == static_cast<int>(XLA_FFI_{theirs}));")
    return "\n".join(lines)


def test_declarations_are_those_of_xla(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    headers = Path(jax.ffi.include_dir())
    sources = Path(__file__).parents[2] / "l2o" / "kernels" / "cpp"
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    if not (headers / "xla" / "ffi" / "api" / "c_api.h").exists():
        pytest.skip("jaxlib came without its headers")
    path = tmp_path / "declarations.cc"
    path.write_text(declarations())
    includes = [f"-I{headers}", f"-I{sources}"]
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", *includes, str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def text_of(shapes, backend):
    """What is lowered for one update of tensors."""
    rule = RULES["small_fc"]

    def given(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def tensor(shape):
        axes = factored_axes(shape)
        row, col = (given(*_reduced(shape, axis)) for axis in axes[::-1])
        x = given(*shape)
        return Tensor(x, x, Accumulators((x,) * 3, (x,), (row,) * 3, (col,) * 3))

    sizes = {"w0": (28, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 2)}
    nn = {name: given(1, *size) for name, size in {**sizes, "b2": (2,)}.items()}
    shared = Shared(Decays(given(3), given(1), given(3)), 0.0)
    f = functools.partial(update_tensors, rule)
    with l2o.backend(backend):
        lowered = jax.jit(f).lower([*map(tensor, shapes)], nn, given(1), shared)
    return lowered.as_text()


@needs_kernels
def test_small_tensors_share_calls():
    calls = "custom_call @l2o_update("
    assert text_of([(5, 3)] * _library.TOGETHER, "native").count(calls) == 1
    assert text_of([(5, 3)] * 64, "native").count(calls) == 64 / _library.TOGETHER
    large = [(5, 3), (300, 260), (300, 260), (5, 3)]
    assert text_of(large, "native").count(calls) == 3


def test_what_is_compiled_grows_with_the_shapes():
    few, many = (
        text_of([(5, 3), (7, 4)] * n, "xla").count("stablehlo.") for n in (4, 20)
    )
    assert few > 500
    assert many < 2 * few


def test_what_may_be_sharded_is_not_stacked():
    shapes = [(5, 3)] * 6
    assert "stablehlo.while" in text_of(shapes, "xla")
    mesh = AbstractMesh((2,), ("d",), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert "stablehlo.while" not in text_of(shapes, "xla")


@pytest.mark.parametrize(
    "networks",
    [
        pytest.param(1, id="shared", marks=pytest.mark.exhaustive),
        pytest.param(5, id="per_tensor"),
    ],
)
def test_equal_shapes_are_updated_as_each_alone(networks):
    layout = layout_of("velo", [(3, 4)] * 5)
    operands = operands_of(layout, networks=networks)
    tensors = [
        Tensor(g, p, Accumulators(x[:3], x[3:4], x[4:7], x[7:]))
        for g, p, *x in split(layout, operands)
    ]
    tensors = jax.tree.map(jnp.asarray, tensors)
    sizes = {"w0": (30, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 2)}
    sizes["b2"] = (2,)
    nn = normal(0, {name: (networks, *size) for name, size in sizes.items()})
    scale = jnp.arange(1.0, 1 + networks)
    decays = Decays(*np.split(operands[0], [3, 4]))

    def rows(tree, group):
        index = np.array([0] if networks == 1 else group)
        return jax.tree.map(lambda x: x[index], tree)

    def updates(groups, nn):
        new = []
        for group in groups:
            some = [tensors[i] for i in group]
            given = rows(nn, group), rows(scale, group)
            new += update_tensors(layout.rule, some, *given, Shared(decays))
        return new

    def product(groups, nn):
        new = updates(groups, nn)
        return sum(jnp.vdot(u, t.param) for (u, _), t in zip(new, tensors))

    @functools.partial(quick, static_argnums=0)
    def everything(groups, nn):
        return updates(groups, nn), jax.grad(product, 1)(groups, nn)

    with l2o.backend("xla"):
        together = everything((tuple(range(5)),), nn)
        alone = everything(tuple((i,) for i in range(5)), nn)
    assert_close(*map(jax.tree.leaves, (together, alone)), 1e-6)
