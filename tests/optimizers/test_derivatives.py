"""Derivatives through steps at zero: of zero gradients, of zero parameters, or both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_optimizer import RELATIVES, SMALL_SIZES, WITH_UNTOUCHED, small
from helpers import few, normal

import l2o
from l2o._tensors import clip_by_global_norm, square_root
from l2o.kernels._dispatch import update_tree
from l2o.rule._accumulators import Decays, init_accumulators
from l2o.rule._features import FEATURES, over_root
from l2o.rule._newton_schulz import NewtonSchulz, newton_schulz
from l2o.rule._rule import Rule, Shared

OPTIONS = {**SMALL_SIZES, "max_norm": 1.0, "max_tensor_norm": 1.0}
SHAPES = {"one": (1,), "vector": (5,), "matrix": (3, 4), "kernel": (2, 2, 3, 2)}
DECAYS = Decays((0.9, 0.99, 0.999), (0.95,), (0.9, 0.99, 0.999))
OF_VECTORS = FEATURES[:9]
RULES = {
    "velo": Rule(FEATURES, FEATURES, 0.1, grad_bound=1.5, param_scale=True),
    "celo2": Rule(
        FEATURES,
        OF_VECTORS,
        0.3,
        rms_eps=1e-8,
        norm_eps=1e-9,
        normalize_step=True,
        normalized_axes="last",
    ),
}
RULES["orthogonal"] = RULES["celo2"]._replace(
    orthogonalize=NewtonSchulz((3.4445, -4.7750, 2.0315), 5, 1e-8)
)
RULES["pushed"] = RULES["velo"]._replace(holds=False)
# No kernel has all of this; plain JAX has it in one program.
ALL = RULES["orthogonal"]._replace(vector_features=FEATURES, param_scale=True)
# The compiler's optimisations would take most of the time.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
# Factors of the gradients of three updates.
RUNS = {"zeros": (0, 0, 0), "after": (1, 0, 0), "before": (0, 0, 1)}


def inner(tree, other):
    return sum(map(jnp.vdot, *map(jax.tree.leaves, (tree, other))))


def three_updates(update, params, state, grads, run):
    """The parameters after them."""

    def step(carry, factor):
        params, state = carry
        given = jax.tree.map(lambda g: factor * g, grads)
        updates, state = update(given, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    return jax.lax.scan(step, (params, state), run)[0][0]


def assert_finite(tree, message):
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        assert np.all(np.isfinite(x)), (message, jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("rule", "backend"),
    [*((rule, None) for rule in RULES.values()), (ALL, "xla")],
    ids=[*RULES, "plain"],
)
def test_derivatives_of_rules_are_finite_at_zero(rule, backend):
    shapes, h = SHAPES, 4
    if backend == "xla":  # which takes long to compile
        shapes, h = {k: SHAPES[k] for k in ("vector", "matrix")}, 1
    sizes = {"w0": (30, h), "b0": (h,), "w1": (h, h), "b1": (h,), "w2": (h, 3)}
    nn = normal(3, {name: (1, *size) for name, size in {**sizes, "b2": (3,)}.items()})

    def end(nn, params, grads, run):
        def update(grads, state, params):
            given = nn, jnp.full(1, 0.1), Shared(DECAYS, 0.1)
            return update_tree(rule, grads, params, state, *given)

        state = init_accumulators(params, DECAYS)
        end = three_updates(update, params, state, grads, run)
        return inner(end, normal(2, shapes))

    @quick
    def slopes(*given):
        forward = jax.jvp(lambda *x: end(*x, given[-1]), given[:-1], given[:-1])[1]
        return jax.grad(end, (0, 1, 2))(*given), forward if backend == "xla" else 0.0

    with l2o.backend(backend):
        for name, run in RUNS.items():
            for size in (0.0, 1.0):
                params, grads = normal(0, shapes), normal(1, shapes)
                params = jax.tree.map(lambda x, s=size: s * x, params)
                found = slopes(nn, params, grads, jnp.float32(run))
                assert_finite(found, (name, size))


# Of the relatives' rules the test above has the parts.
@pytest.mark.parametrize("name", few(WITH_UNTOUCHED, set(WITH_UNTOUCHED) - RELATIVES))
def test_derivatives_of_optimizers_are_finite_at_zero(name):
    optimizer = small(name, OPTIONS)
    shapes = {name: SHAPES[name] for name in ("vector", "matrix")}

    @quick
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def slopes(theta, params, grads, run):
        tx = optimizer.bind(theta, num_steps=10)
        update = functools.partial(tx.update, value=jnp.float32(1.0))
        end = three_updates(update, params, tx.init(params), grads, run)
        return inner(end, normal(2, shapes))

    theta = optimizer.init_theta(jax.random.key(0))
    for kind, run in RUNS.items():
        found = slopes(theta, normal(0, shapes), normal(1, shapes), jnp.float32(run))
        assert_finite(found, kind)


def assert_differences(f, *given):
    """In float64, along one direction."""
    with jax.enable_x64(True):
        given = [jnp.asarray(np.float64(x)) for x in given]
        rng = np.random.default_rng(7)
        ways = [jnp.asarray(rng.standard_normal(x.shape)) for x in given]
        plus, minus = (
            f(*[x + h * d for x, d in zip(given, ways, strict=True)])
            for h in (1e-6, -1e-6)
        )
        slopes = jax.jvp(f, given, ways)[1]
        np.testing.assert_allclose(slopes, (plus - minus) / 2e-6, rtol=1e-5, atol=1e-7)
        weights = jnp.asarray(rng.standard_normal(slopes.shape))
        back = jax.vjp(f, *given)[1](weights)
        total = sum(map(jnp.vdot, back, ways))
        np.testing.assert_allclose(total, jnp.vdot(weights, slopes), rtol=1e-9)


def test_derivatives_elsewhere_are_those_of_differences():
    x = normal(0, {"x": (3, 4)})["x"]
    assert_differences(over_root, x, 0.1 + x[::-1] ** 2)
    assert_differences(square_root, 0.1 + x**2)
    rounds = NewtonSchulz((3.4445, -4.7750, 2.0315), 5, 1e-8)
    assert_differences(lambda x: newton_schulz(x, *rounds), x)


def test_derivatives_elsewhere_are_finite_at_zero():
    rounds = NewtonSchulz((3.4445, -4.7750, 2.0315), 5, 1e-8)
    functions = {
        "newton_schulz": lambda x: newton_schulz(x, *rounds),
        "clip_by_global_norm": lambda x: clip_by_global_norm(x, 1.0),
        "square_root": square_root,
    }
    for shape in ((2, 3), (3, 2), (1, 1)):
        for name, f in functions.items():
            for derivative in (jax.jacfwd, jax.jacrev):
                assert_finite(quick(derivative(f))(jnp.zeros(shape)), name)


def test_second_derivatives_of_a_root_are_finite_where_nothing_is_divided():
    v = jnp.float32([1e-33, 1e-30, 1.0])
    slopes = jax.jacfwd(jax.grad(lambda v: jnp.sum(over_root(jnp.zeros(3), v))))(v)
    np.testing.assert_array_equal(slopes, np.zeros((3, 3)))
    np.testing.assert_array_equal(over_root(v, v), v * jax.lax.rsqrt(v))
    np.testing.assert_array_equal(square_root(v), jnp.sqrt(v))
    assert square_root(jnp.float32(0.0)) == 0.0
    assert np.isnan(square_root(jnp.float32(jnp.nan)))
