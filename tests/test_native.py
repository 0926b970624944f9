"""The native kernels against a slow form in float64, and against plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_forms import SlowTensor, network, normalise

from l2o import _native
from l2o._accumulators import Decays, factored_axes, init_accumulators
from l2o._features import FEATURES
from l2o._rule import Rule, Tensor

MISSING = _native.unavailable()
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

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    rule, h = layout.rule, layout.width
    weights = 0.3 * draw(networks, _native._planes(rule) * h + h * h + 4 * h + 2)
    factors = jnp.array([[0.7, 0.1]]) + 0.1 * draw(networks, 2)
    operands = [jnp.array([0.9, 0.99, 0.5, 0.95, 0.8, 0.99, 0.5]), weights, factors]
    for shape in layout.shapes:
        like = init_accumulators(
            jnp.zeros(shape), Decays((0.9,) * 3, (0.9,), (0.9,) * 3)
        )
        flat = _native._flat(Tensor(draw(*shape), draw(*shape), like))
        operands += [draw(*shape) * jnp.exp(0.5 * draw(*shape)), flat[1]]
        operands += [draw(*shape) for _ in range(3)]
        operands += [0.1 + draw(*x.shape) ** 2 for x in flat[5:]]
    return operands


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
