"""What every learned optimizer must do, and each formula against a slow oracle."""

import doctest
import importlib
import inspect
import json
import math
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import l2o
from l2o._accumulators import (
    factored_axes,
    init_second_moment,
    inverse_root,
    update_second_moment,
)
from l2o._features import time_embedding

NUM_STEPS = 100

# A new factory is under test as soon as it is registered.
OPTIMIZERS = {name: factory() for name, factory in l2o.FACTORIES.items()} | {
    "learnable_adam-eps_root": l2o.learnable_adam(eps_root=1e-8),
    "mlp-narrow": l2o.mlp(hidden_size=4, hidden_layers=1, momentum_decays=(0.9,)),
    "small_fc-wide": l2o.small_fc(hidden_size=20, hidden_layers=1),
    "small_fc-deep-single": l2o.small_fc(
        hidden_size=3,
        hidden_layers=3,
        momentum_decays=(0.9,),
        rms_decays=(0.99,),
        adafactor_decays=(0.9,),
    ),
}
WITHOUT_PARAMS = {"learnable_adam", "learnable_sgd", "learnable_sgdm"}


def _normal(seed, shapes):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


SHAPES = {"b": (2,), "w": (3, 2)}
PARAMS = _normal(0, SHAPES)
GRADS = [_normal(seed, SHAPES) for seed in (1, 2, 3)]
LOSS = jnp.float32(0.5)


class Case(NamedTuple):
    optimizer: l2o.LearnedOptimizer
    theta: Any
    other_theta: Any
    tx: optax.GradientTransformationExtraArgs
    step: Callable  # compiled: theta, params, state, grads, loss -> params, state


@pytest.fixture(scope="module", params=OPTIMIZERS)
def case(request):
    """One optimizer; `step` is compiled once and shared by all its tests.

    Hand `step` trees of `SHAPES` in float32 only: a test counts its compilations.
    """
    optimizer = OPTIMIZERS[request.param]
    theta = optimizer.init_theta(jax.random.key(0))

    @jax.jit
    def step(theta, params, state, grads, loss):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    other_theta = jax.tree.map(lambda x: 1.1 * x + 0.01, theta)
    tx = optimizer.bind(theta, num_steps=NUM_STEPS)
    return Case(optimizer, theta, other_theta, tx, step)


def _run(case, steps=3, theta=None, params=PARAMS):
    theta = case.theta if theta is None else theta
    state = case.tx.init(params)
    for grads in GRADS[:steps]:
        params, state = case.step(theta, params, state, grads, LOSS)
    return params, state


def _update(tx):
    """A compiled update, with theta as the constant that `l2o.load` makes of it."""
    return jax.jit(lambda g, state, p: tx.update(g, state, p, value=LOSS))


def _assert_close(actual, expected, rtol=1e-4, atol=1e-8):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def _assert_all_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


def _avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# The theory: what a LearnedOptimizer says about itself.


def test_arguments_rebuild_the_optimizer(case):
    optimizer = case.optimizer
    arguments = json.loads(json.dumps(optimizer.arguments))
    assert set(arguments) == set(
        inspect.signature(l2o.FACTORIES[optimizer.name]).parameters
    )
    rebuilt = l2o.make(optimizer.name, **arguments)
    assert (rebuilt.name, rebuilt.arguments) == (optimizer.name, optimizer.arguments)
    _assert_close(rebuilt.init_theta(jax.random.key(0)), case.theta, rtol=0, atol=0)


def test_theta_is_float32_whatever_the_default_precision(case):
    for x64 in (False, True):
        with jax.enable_x64(x64):
            theta = jax.eval_shape(case.optimizer.init_theta, jax.random.key(0))
        assert {x.dtype for x in jax.tree.leaves(theta)} == {jnp.dtype("float32")}


def test_init_theta_under_vmap(case):
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.eval_shape(jax.vmap(case.optimizer.init_theta), keys)
    for x, one in zip(jax.tree.leaves(many), jax.tree.leaves(case.theta)):
        assert x.shape == (2, *one.shape)


@pytest.mark.parametrize("num_steps", [None, 7])
def test_bind_accepts_a_horizon(case, num_steps):
    tx = case.optimizer.bind(case.theta, num_steps=num_steps)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    jax.eval_shape(lambda g, p: tx.update(g, tx.init(p), p, value=0.5), PARAMS, PARAMS)


def test_bind_accepts_a_traced_horizon(case):
    def update(num_steps):
        tx = case.optimizer.bind(case.theta, num_steps=num_steps)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=0.5)

    jax.eval_shape(update, jnp.int32(7))


def test_make_names_what_is_known():
    with pytest.raises(
        ValueError, match=r"unknown learned optimizer 'x'; known: .*mlp"
    ):
        l2o.make("x")
    with pytest.raises(
        ValueError, match=r"mlp has no argument 'x'; known: hidden_size"
    ):
        l2o.make("mlp", x=1)


@pytest.mark.parametrize("name", l2o.FACTORIES)
def test_factory_is_documented(name):
    doc = inspect.getdoc(l2o.FACTORIES[name])
    for part in (".. math::", "Args:", "Example:", ">>> ", "Source:"):
        assert part in doc, part


def test_doctests_pass():
    results = {}
    for module in pkgutil.iter_modules(l2o.__path__, "l2o."):
        if module.name.startswith("l2o._"):
            results[module.name] = doctest.testmod(importlib.import_module(module.name))
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 2 * len(l2o.FACTORIES)


# JAX transformations.


def test_jit_equals_no_jit(case):
    params, state = PARAMS, case.tx.init(PARAMS)
    for grads in GRADS:
        updates, state = case.tx.update(grads, state, params, value=LOSS)
        params = optax.apply_updates(params, updates)
    _assert_close((params, state), _run(case), rtol=1e-5, atol=1e-7)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), params, PARAMS)
    assert min(jax.tree.leaves(moved)) > 1e-6  # the comparison means something


def test_second_step_and_other_theta_do_not_recompile(case):
    _run(case, theta=case.theta)
    _run(case, theta=case.other_theta)
    assert case.step._cache_size() == 1


def test_theta_is_an_argument_that_matters(case):
    params, _ = _run(case, theta=case.theta)
    others, _ = _run(case, theta=case.other_theta)
    assert not np.allclose(params["w"], others["w"], rtol=0, atol=1e-7)


def test_vmap_over_theta_and_over_tensors(case):
    def update(theta, params, grads):
        tx = case.optimizer.bind(theta, num_steps=NUM_STEPS)
        updates, state = tx.update(grads, tx.init(params), params, value=LOSS)
        return optax.apply_updates(params, updates), state

    def stack(*trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    starts = [PARAMS, jax.tree.map(lambda x: 2 * x, PARAMS)]
    thetas = [case.theta, case.other_theta]
    over_tensors = jax.vmap(update, (None, 0, 0))
    result = jax.jit(jax.vmap(over_tensors, (0, None, None)))(
        stack(*thetas), stack(*starts), stack(*GRADS[:2])
    )
    for i, theta in enumerate(thetas):
        for j, params in enumerate(starts):
            state = case.tx.init(params)
            expected = case.step(theta, params, state, GRADS[j], LOSS)
            _assert_close(
                jax.tree.map(lambda x, i=i, j=j: x[i, j], result),
                expected,
                rtol=1e-5,
                atol=1e-7,
            )


def test_scan_equals_loop(case):
    def body(carry, grads):
        params, state = carry
        updates, state = case.tx.update(grads, state, params, value=LOSS)
        return (optax.apply_updates(params, updates), state), None

    grads = jax.tree.map(lambda *x: jnp.stack(x), *GRADS)
    carry, _ = jax.jit(lambda carry: lax.scan(body, carry, grads))(
        (PARAMS, case.tx.init(PARAMS))
    )
    _assert_close(carry, _run(case), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("param_dtype", "grad_dtype"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
    ],
)
def test_shapes_and_dtypes_are_stable(case, param_dtype, grad_dtype):
    params = optax.tree.cast(PARAMS, param_dtype)
    grads = optax.tree.cast(PARAMS, grad_dtype)

    def update(state):
        return case.tx.update(grads, state, params, value=LOSS)

    state = case.tx.init(params)
    updates, new_state = jax.eval_shape(update, state)
    assert _avals(updates) == _avals(grads)
    assert _avals(new_state) == _avals(state)
    # `cond` compares weak types too.
    jax.eval_shape(
        lambda skip, state: lax.cond(skip, lambda s: s, lambda s: update(s)[1], state),
        True,
        state,
    )


def test_bfloat16_is_computed_in_float32(case):
    params, grads = optax.tree.cast((PARAMS, GRADS[0]), jnp.bfloat16)
    updates, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    params, grads = optax.tree.cast((params, grads), jnp.float32)
    expected, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    _assert_close(optax.tree.cast(updates, jnp.float32), expected, rtol=2**-8)


def test_gradient_of_theta_through_one_and_two_updates_is_finite(case):
    grads = jax.tree.map(lambda *x: jnp.stack(x), *GRADS[:2])

    def losses(theta):
        tx = case.optimizer.bind(theta, num_steps=NUM_STEPS)

        def body(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params, value=LOSS)
            params = optax.apply_updates(params, updates)
            loss = sum(jnp.sum(x * x) for x in jax.tree.leaves(params))
            return (params, state), loss

        return lax.scan(body, (PARAMS, tx.init(PARAMS)), grads)[1]

    jacobian = jax.jit(jax.jacrev(losses))(case.theta)
    _assert_all_finite(jacobian)
    for row in range(2):
        assert optax.tree.norm(jax.tree.map(lambda x, row=row: x[row], jacobian)) > 1e-6


def test_zero_gradients_give_finite_updates(case):
    zeros = optax.tree.zeros_like(PARAMS)
    params, state = PARAMS, case.tx.init(PARAMS)
    for _ in range(2):
        params, state = case.step(case.theta, params, state, zeros, LOSS)
    _assert_all_finite((params, state))


# Trees.


class Pair(NamedTuple):
    first: Any
    second: Any


def _ones(*shape):
    return jnp.full(shape, 0.5)


TREES = {
    "scalar": _ones(),
    "vector": _ones(4),
    "matrix": _ones(3, 2),
    "square": _ones(3, 3),
    "conv": _ones(3, 3, 2, 4),
    "size_one_axes": {"row": _ones(1, 4), "one": _ones(1, 1), "vector": _ones(1)},
    "no_elements": {"matrix": _ones(0, 3), "vector": _ones(0), "full": _ones(2)},
    "empty": {},
    "none": {"w": _ones(3, 2), "frozen": None},
    "nested": {
        "a": (Pair(_ones(2), [_ones(3, 2)]), {}),
        "b": {"c": Pair(None, _ones())},
    },
}


@pytest.mark.parametrize("name", TREES)
def test_tree(case, name):
    params = TREES[name]
    state = case.tx.init(params)
    updates, new_state = case.tx.update(params, state, params, value=LOSS)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert _avals(updates) == _avals(params)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert _avals(new_state) == _avals(state)
    _assert_all_finite((updates, new_state))
    for update in jax.tree.leaves(updates):
        assert np.all(update != 0)


def test_numpy_trees_are_accepted(case):
    params = jax.tree.map(np.asarray, PARAMS)
    grads = jax.tree.map(np.asarray, GRADS[0])
    updates, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    expected, _ = case.tx.update(GRADS[0], case.tx.init(PARAMS), PARAMS, value=LOSS)
    _assert_close(updates, expected)


# Calls from other code.


def test_unexpected_extra_argument_is_swallowed(case):
    extra = {"unexpected_extra_args_your_optimizer_doesnt_expect": object()}
    state = case.tx.init(PARAMS)
    updates, _ = case.tx.update(GRADS[0], state, PARAMS, value=LOSS, **extra)
    expected, _ = case.tx.update(GRADS[0], state, PARAMS, value=LOSS)
    _assert_close(updates, expected, rtol=0, atol=0)


def test_missing_params_name_the_call_to_write(case):
    state = case.tx.init(PARAMS)
    name = case.optimizer.name
    if name in WITHOUT_PARAMS:
        case.tx.update(GRADS[0], state)
        return
    remedy = (
        rf"^{name} needs the current parameters: call "
        r"`updates, state = tx\.update\(grads, state, params, value=loss\)`"
    )
    with pytest.raises(ValueError, match=remedy):
        case.tx.update(GRADS[0], state)


def test_map_params_finds_what_belongs_to_parameters(case):
    state = case.tx.init(PARAMS)
    mapped = optax.tree.map_params(
        case.tx,
        lambda _: "parameter",
        state,
        transform_non_params=lambda _: "other",
    )
    for leaf, kind in zip(jax.tree.leaves(state), jax.tree.leaves(mapped)):
        assert kind == ("parameter" if leaf.ndim else "other")


# Inside optax's wrappers.


def test_inside_chain(case):
    max_norm = 0.1
    chained = optax.chain(optax.clip_by_global_norm(max_norm), case.tx)
    updates, _ = _update(chained)(GRADS[0], chained.init(PARAMS), PARAMS)
    clipped = optax.tree.scale(max_norm / optax.tree.norm(GRADS[0]), GRADS[0])
    params, _ = case.step(case.theta, PARAMS, case.tx.init(PARAMS), clipped, LOSS)
    _assert_close(optax.apply_updates(PARAMS, updates), params, rtol=1e-5, atol=1e-7)


def test_inside_multi_steps(case):
    every = optax.MultiSteps(case.tx, every_k_schedule=2)
    update = _update(every)
    idle, state = update(GRADS[0], every.init(PARAMS), PARAMS)
    _assert_close(idle, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    updates, state = update(GRADS[1], state, PARAMS)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *GRADS[:2])
    expected = case.step(case.theta, PARAMS, case.tx.init(PARAMS), mean, LOSS)
    _assert_close(
        (optax.apply_updates(PARAMS, updates), state.inner_opt_state),
        expected,
        rtol=1e-5,
        atol=1e-7,
    )


def test_inside_masked(case):
    masked = optax.masked(case.tx, {"b": False, "w": True})
    updates, _ = _update(masked)(GRADS[0], masked.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["b"], GRADS[0]["b"])
    params, grads = {"w": PARAMS["w"]}, {"w": GRADS[0]["w"]}
    alone, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    np.testing.assert_allclose(updates["w"], alone["w"], rtol=1e-4, atol=1e-7)


def test_inside_partition(case):
    labels = {"b": "sgd", "w": "learned"}
    parted = optax.partition({"learned": case.tx, "sgd": optax.sgd(0.1)}, labels)
    updates, _ = _update(parted)(GRADS[0], parted.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["b"], -0.1 * GRADS[0]["b"], rtol=1e-6)
    params, grads = {"w": PARAMS["w"]}, {"w": GRADS[0]["w"]}
    alone, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    np.testing.assert_allclose(updates["w"], alone["w"], rtol=1e-4, atol=1e-7)


def test_inside_apply_if_finite(case):
    guarded = optax.apply_if_finite(case.tx, max_consecutive_errors=3)
    update = _update(guarded)
    nan = {**GRADS[0], "w": GRADS[0]["w"].at[0, 0].set(jnp.nan)}
    updates, state = update(nan, guarded.init(PARAMS), PARAMS)
    _assert_close(updates, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    _assert_close(state.inner_state, case.tx.init(PARAMS), rtol=0, atol=0)
    assert state.notfinite_count == 1
    updates, state = update(GRADS[0], state, PARAMS)
    assert state.notfinite_count == 0
    _assert_close(
        (optax.apply_updates(PARAMS, updates), state.inner_state),
        _run(case, steps=1),
        rtol=1e-5,
        atol=1e-7,
    )


def test_inside_inject_hyperparams(case):
    scaled = optax.inject_hyperparams(
        lambda scale: optax.chain(case.tx, optax.scale(scale))
    )(scale=0.5)
    update = _update(scaled)
    state = scaled.init(PARAMS)
    half, _ = update(GRADS[0], state, PARAMS)
    state.hyperparams["scale"] = jnp.float32(1)
    full, _ = update(GRADS[0], state, PARAMS)
    _assert_close(half, optax.tree.scale(0.5, full), rtol=1e-6)
    expected, _ = _run(case, steps=1)
    _assert_close(optax.apply_updates(PARAMS, full), expected, rtol=1e-5, atol=1e-7)


# Inside neural network libraries: a linear layer, against the same steps by hand.


def _linear_loss(params, x):
    return jnp.mean((x @ params["w"] + params["b"] - 1) ** 2)


X = jnp.asarray(np.random.default_rng(4).standard_normal((4, 3)), jnp.float32)


def _linear_by_hand(case, params):
    state = case.tx.init(params)
    for _ in range(2):
        loss, grads = jax.value_and_grad(_linear_loss)(params, X)
        params, state = case.step(case.theta, params, state, grads, loss)
    return params


def test_flax_nnx_optimizer(case):
    from flax import nnx

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    expected = _linear_by_hand(case, {"b": model.bias[...], "w": model.kernel[...]})
    optimizer = nnx.Optimizer(model, case.tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, grads, value=loss)

    for _ in range(2):
        train_step(model, optimizer, X)
    actual = {"b": model.bias[...], "w": model.kernel[...]}
    _assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_haiku_loop(case):
    import haiku as hk

    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x)))
    params = net.init(jax.random.key(0), X)
    expected = _linear_by_hand(case, params["linear"])
    state = case.tx.init(params)

    @jax.jit
    def train_step(params, state, x):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((net.apply(p, x) - 1) ** 2)
        )(params)
        updates, state = case.tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = train_step(params, state, X)
    _assert_close(params["linear"], expected, rtol=1e-5, atol=1e-7)


# Hand-designed rules against their closed forms.


def _numpy_sgdm(learning_rate, momentum):
    def step(g, state):
        b = momentum * (0 if state is None else state) + g
        return -learning_rate * b, b

    return step


def _numpy_adam(learning_rate, b1, b2, eps, eps_root):
    def step(g, state):
        t, m, v = (0, 0, 0) if state is None else state
        t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        return -learning_rate * m_hat / (np.sqrt(v_hat + eps_root) + eps), (t, m, v)

    return step


SGD = {"learning_rate": 0.03}
SGDM = {"learning_rate": 0.03, "momentum": 0.8}
ADAM = {"learning_rate": 0.03, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "eps_root": 0.0}
ADAM_ROOT = {**ADAM, "eps_root": 1e-2}


@pytest.mark.parametrize(
    ("learned", "plain", "slow"),
    [
        (l2o.learnable_sgd(**SGD), optax.sgd(**SGD), _numpy_sgdm(0.03, 0)),
        (l2o.learnable_sgdm(**SGDM), optax.sgd(**SGDM), _numpy_sgdm(**SGDM)),
        (l2o.learnable_adam(**ADAM), optax.adam(**ADAM), _numpy_adam(**ADAM)),
        (
            l2o.learnable_adam(**ADAM_ROOT),
            optax.adam(**ADAM_ROOT),
            _numpy_adam(**ADAM_ROOT),
        ),
    ],
    ids=["sgd", "sgdm", "adam", "adam-eps_root"],
)
def test_learnable_optimizer_equals_optax_and_the_closed_form(learned, plain, slow):
    tx = learned.bind(learned.init_theta(jax.random.key(0)))
    params = PARAMS["w"]
    state, plain_state, slow_state = tx.init(params), plain.init(params), None
    for seed in range(5):
        grads = 0.1 * _normal(seed, SHAPES)["w"]
        updates, state = tx.update(grads, state, params)
        plain_updates, plain_state = plain.update(grads, plain_state, params)
        slow_updates, slow_state = slow(np.float64(grads), slow_state)
        np.testing.assert_allclose(updates, plain_updates, rtol=1e-5)
        np.testing.assert_allclose(updates, slow_updates, rtol=1e-5)


def test_gradient_of_learnable_sgd_matches_finite_differences():
    curvature, start, steps = np.array([1.0, 3.0]), np.array([2.0, -1.0]), 3
    optimizer = l2o.learnable_sgd()

    def loss(theta):
        tx = optimizer.bind(theta)
        x = jnp.asarray(start)
        state = tx.init(x)
        for _ in range(steps):
            updates, state = tx.update(curvature * x, state, x)
            x = optax.apply_updates(x, updates)
        return jnp.sum(curvature * x * x) / 2

    with jax.enable_x64(True):
        log_lr = math.log(0.1)
        gradient = jax.grad(loss)({"log_lr": jnp.float64(log_lr)})["log_lr"]
        h = 1e-5
        high, low = (loss({"log_lr": jnp.float64(log_lr + d)}) for d in (h, -h))
    np.testing.assert_allclose(gradient, (high - low) / (2 * h), rtol=1e-7)
    # L = sum(c x_k^2) / 2 with x_k = (1 - a c)^k x_0 and a = exp(log_lr).
    factor = 1 - 0.1 * curvature
    exact = -np.sum(
        curvature * start**2 * steps * factor ** (2 * steps - 1) * 0.1 * curvature
    )
    np.testing.assert_allclose(gradient, exact, rtol=1e-12)


# Accumulators and features against slow NumPy forms.


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((7,), None),
        ((3, 5), (0, 1)),
        ((5, 3), (1, 0)),
        ((1, 4), (0, 1)),
        ((4, 4), (0, 1)),
        ((2, 5, 3), (2, 1)),
        ((3, 3, 16, 32), (2, 3)),
        ((64, 64, 3, 3), (0, 1)),
        ((3, 3, 64, 64), (2, 3)),
    ],
)
def test_factored_axes(shape, axes):
    assert factored_axes(shape) == axes


def test_time_embedding_closed_form():
    start = time_embedding(jnp.int32(0))
    assert start.shape == (11,)
    np.testing.assert_allclose(start, np.tanh(-1), rtol=1e-6)
    np.testing.assert_allclose(time_embedding(jnp.int32(30))[3], 0, atol=1e-6)
    np.testing.assert_allclose(time_embedding(jnp.int32(100_000))[10], 0, atol=1e-6)
    np.testing.assert_allclose(time_embedding(jnp.int32(20))[2], np.tanh(1), rtol=1e-6)


def test_first_factored_update_of_a_constant_gradient():
    grad, decay = jnp.full((5, 3), -2.0), jnp.float32(0.9)
    moment = update_second_moment(init_second_moment(grad), grad, decay)
    assert (moment.row.shape, moment.col.shape) == ((1, 3), (5, 1))
    np.testing.assert_allclose(moment.row, 0.1 * 4, rtol=1e-6)
    np.testing.assert_allclose(moment.col, 0.1 * 4, rtol=1e-6)
    scaled = math.prod(inverse_root(moment, grad.shape), start=grad)
    np.testing.assert_allclose(scaled, -1 / math.sqrt(0.1), rtol=1e-5)


def _rsqrt(x):
    return 1 / np.sqrt(x)


def _floored_rsqrt(x):
    return _rsqrt(np.maximum(x, 1e-9))


def _slow_step(nn, features, t, arguments):
    """The network on features stacked along a trailing axis, one update of a tensor."""
    every = tuple(range(features.ndim - 1))
    x = features * _rsqrt(np.mean(features**2, every, keepdims=True) + 1e-5)
    scales = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
    time = np.broadcast_to(np.tanh(t / scales - 1), (*x.shape[:-1], 11))
    x = np.concatenate([x, time], -1)
    layers = len(nn) // 2
    for i in range(layers):
        x = x @ nn[f"w{i}"] + nn[f"b{i}"]
        if i < layers - 1:
            x = np.maximum(x, 0)
    direction, magnitude = x[..., :1], x[..., 1:]
    return (
        direction * np.exp(magnitude * arguments["exp_mult"]) * arguments["step_mult"]
    )


def _slow_mlp(theta, arguments, param, grads):
    """`mlp` on one tensor, in float64: its path and its last momenta."""
    decay = np.array(arguments["momentum_decays"])
    p = param.reshape(param.shape or (1,))[..., None]
    m, path = 0, []
    for t, grad in enumerate(grads):
        g = grad.reshape(p.shape)
        m = decay * m + (1 - decay) * g
        p = p - _slow_step(theta["nn"], np.concatenate([g, p, m], -1), t, arguments)
        path.append(p.reshape(param.shape))
    return path, {"momentum": m}


def _slow_small_fc(theta, arguments, param, grads):
    """`small_fc` on one tensor, in float64: its path and its last accumulators."""

    def decays(kind):
        offset = np.exp(10 * theta[kind])
        return 1 - (1 - np.array(arguments[kind])) * offset

    d_m = decays("momentum_decays")
    d_r = np.clip(decays("rms_decays"), 0, 1)
    d_v = np.clip(decays("adafactor_decays"), 0, 1)
    p = param.reshape(param.shape or (1,))[..., None]
    shape = p.shape[:-1]
    m = r = v = v_row = v_col = 0
    path = []
    for t, grad in enumerate(grads):
        g = grad.reshape(p.shape)
        m = d_m * m + (1 - d_m) * g
        r = d_r * r + (1 - d_r) * g**2
        if len(shape) < 2:
            row = col = v = d_v * v + (1 - d_v) * (g**2 + 1e-30)
            g_scale, m_scale = _floored_rsqrt(v + 1e-9), _rsqrt(v + 1e-6)
        else:
            # Python's sort is stable: of equal axes the later one counts as larger.
            *_, d1, d0 = sorted(range(len(shape)), key=lambda axis: shape[axis])
            v_row = d_v * v_row + (1 - d_v) * np.mean(g**2 + 1e-30, d0)
            v_col = d_v * v_col + (1 - d_v) * np.mean(g**2 + 1e-30, d1)
            mean = np.mean(v_row, d1 - 1 if d1 > d0 else d1, keepdims=True)
            row_scale = np.expand_dims(_floored_rsqrt(v_row / (mean + 1e-9)), d0)
            col_scale = np.expand_dims(_floored_rsqrt(v_col), d1)
            g_scale = m_scale = row_scale * col_scale
            row = np.broadcast_to(np.expand_dims(v_row, d0), g_scale.shape)
            col = np.broadcast_to(np.expand_dims(v_col, d1), g_scale.shape)
        features = [g, p, m, r, m * _rsqrt(r + 1e-6), _rsqrt(r + 1e-6), g * g_scale]
        features += [row, col, _rsqrt(row + 1e-8), _rsqrt(col + 1e-8), m * m_scale]
        features = np.concatenate(features, -1)
        p = p - _slow_step(theta["nn"], features, t, arguments)
        path.append(p.reshape(param.shape))
    return path, {"momentum": m, "rms": r, "row": row, "col": col}


ORACLE_SHAPES = {
    "matrix": (5, 3),
    "vector": (4,),
    "scalar": (),
    "conv": (3, 3, 4, 6),
    "square": (3, 3),
    "size_one": (1, 4),
    "sparse": (4, 3),
}
ONE_DECAY = {
    "momentum_decays": (0.9,),
    "rms_decays": (0.99,),
    "adafactor_decays": (0.95,),
}
PAIRED_DECAYS = {
    "momentum_decays": (0.5, 0.9),
    "rms_decays": (0.95, 0.99),
    "adafactor_decays": (0.9, 0.99),
}


def _oracle_problem(optimizer, steps=3):
    """A random theta (nothing zero) and gradients of 1 to 1e-4, so that epsilons act."""
    rng = np.random.default_rng(0)

    def noisy(path, x):
        decays = "decays" in jax.tree_util.keystr(path)
        return x + (0.03 if decays else 0.2) * rng.standard_normal(x.shape)

    theta = jax.tree_util.tree_map_with_path(
        noisy, optimizer.init_theta(jax.random.key(0))
    )
    theta = jax.tree.map(np.float32, theta)
    params = {k: rng.standard_normal(s) for k, s in ORACLE_SHAPES.items()}
    sizes = dict(zip(ORACLE_SHAPES, [1, 1e-2, 1e-3, 1e-1, 1e-4, 1e-2, 1e-1]))
    grads = {
        k: sizes[k] * rng.standard_normal((steps, *s)) for k, s in ORACLE_SHAPES.items()
    }
    grads["sparse"][:, :2] = 0
    return jax.tree.map(np.float32, (theta, params, grads))


def _assert_follows(optimizer, slow, theta, params, grads):
    """Runs the transformation on all tensors; compares each with the slow rule."""

    @jax.jit
    def step(theta, params, state, grads):
        updates, state = optimizer.bind(theta).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    steps = len(grads["scalar"])
    fast, state, path = params, optimizer.bind(theta).init(params), []
    for t in range(steps):
        fast, state = step(theta, fast, state, {k: g[t] for k, g in grads.items()})
        path.append(fast)
    assert state.count == steps
    wide = jax.tree.map(np.float64, (theta, params, grads))
    for name, param in wide[1].items():
        expected, slots = slow(wide[0], optimizer.arguments, param, wide[2][name])
        for t in range(steps):
            np.testing.assert_allclose(
                path[t][name], expected[t], rtol=0, atol=1e-5, err_msg=f"{name} {t}"
            )
        found = {"momentum": [m[name] for m in state.momentum]}
        if "rms" in slots:
            second = [v[name] for v in state.second]
            found["rms"] = [r[name] for r in state.rms]
            found["row"] = [v.row for v in second]
            found["col"] = [v.row if v.col is None else v.col for v in second]
        for slot, expected_slot in slots.items():
            stacked = np.stack(
                [np.broadcast_to(x, param.shape) for x in found[slot]], -1
            )
            np.testing.assert_allclose(
                stacked.reshape(expected_slot.shape),
                expected_slot,
                rtol=2e-4,
                atol=1e-12,
                err_msg=f"{name} {slot}",
            )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden_size": 8, "hidden_layers": 1},
        {"hidden_size": 32, "hidden_layers": 3},
        {"hidden_size": 8, "hidden_layers": 3, **ONE_DECAY},
        {"hidden_size": 32, "hidden_layers": 1, **PAIRED_DECAYS},
        {"hidden_layers": 1, **PAIRED_DECAYS, "momentum_decays": (0.9,)},
    ],
    ids=str,
)
def test_small_fc_equals_its_slow_form(arguments):
    optimizer = l2o.small_fc(**arguments, step_mult=0.1, exp_mult=0.1)
    _assert_follows(optimizer, _slow_small_fc, *_oracle_problem(optimizer))


def test_small_fc_clips_all_learned_decays_but_those_of_momenta():
    optimizer = l2o.small_fc(hidden_size=4, hidden_layers=1, **ONE_DECAY, step_mult=0.1)
    theta, params, grads = _oracle_problem(optimizer)
    for kind in ONE_DECAY:
        theta[kind] = np.float32([0.6])  # 1 - d is 400 times larger
    _assert_follows(optimizer, _slow_small_fc, theta, params, grads)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden_size": 8, "hidden_layers": 1},
        {"hidden_size": 8, "hidden_layers": 3, "momentum_decays": (0.9,)},
    ],
    ids=str,
)
def test_mlp_equals_its_slow_form(arguments):
    optimizer = l2o.mlp(**arguments, step_mult=0.1, exp_mult=0.1)
    _assert_follows(optimizer, _slow_mlp, *_oracle_problem(optimizer))


@pytest.mark.parametrize("kind", ["rms_decays", "adafactor_decays"])
def test_decays_that_cannot_be_paired_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"groups of 3 and 2 .* cannot be paired: give"
    ):
        l2o.small_fc(**{kind: (0.9, 0.99)})
