"""What native kernels are given, and a slow form in float64 of what they compute."""

import functools

import jax
import numpy as np
import pytest
from slow_forms import SlowTensor, network, normalise

from l2o.kernels import _library, _native
from l2o.rule._accumulators import factored_axes
from l2o.rule._features import FEATURES
from l2o.rule._rule import Rule

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


def pull(layout, operands, cotangents):
    """Cotangents of all operands."""
    return jax.vjp(functools.partial(_native._update, layout), *operands)[1](cotangents)


gradient = quick(pull, static_argnums=0)


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
        row, *col = [shape] if axes is None else [reduced(shape, d) for d in axes[::-1]]
        operands += [draw(shape) * np.exp(0.5 * draw(shape)), draw(shape)]
        operands += [draw(shape) for _ in range(3)]
        operands += [0.1 + draw(x) ** 2 for x in (shape, *[row] * 3, *col * 3)]
    return [np.float32(x) for x in operands]


def reduced(shape, axis):
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


def some_entries(*shapes):
    layout = layout_of("small_fc", shapes)
    return layout, [operands_of(layout, networks=3, seed=seed) for seed in range(3)]


def stacked(entries):
    return [np.stack(x) for x in zip(*entries)]


# Vectors with a rest of lanes, in either order, of several blocks, one between.
SMOOTH_SHAPES = ((17,), (5, 18), (20, 3), (2, 2, 3, 4), (4, 2, 5))
