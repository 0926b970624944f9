"""One contract for every optimizer: optax, flax and haiku, all of jax, all trees."""

import doctest
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import FACTORIES, NUM_STEPS, OPTIMIZERS, RELATIVES, VARIANTS
from helpers import few, momenta, normal
from jax import lax

import l2o
from l2o.rule._network import init_mlp

# One matrix where a test compiles: XLA's time is what these tests cost. `test_tree` has
# the other shapes, and the replayed traces of `test_parity` compile them together.
SHAPES = {"w": (3, 2)}


PARAMS = normal(0, SHAPES)


GRADS = [normal(seed, SHAPES) for seed in (1, 2, 3)]


WITH_BIAS = [normal(seed, {"b": (2,), **SHAPES}) for seed in (0, 1)]


LOSS = jnp.float32(0.5)


# Not constant: how a loss stands against its own average is then rounding alone.
LOSSES = jnp.array([0.5, 0.45, 0.3])


class Case(NamedTuple):
    optimizer: l2o.LearnedOptimizer
    theta: Any
    other_theta: Any
    tx: optax.GradientTransformationExtraArgs
    step: Callable  # compiled: theta, params, state, grads, loss -> params, state


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in VARIANTS else [])
        for name in OPTIMIZERS
    ],
)
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


def _run(case, steps=3, theta=None):
    theta = case.theta if theta is None else theta
    params, state = PARAMS, case.tx.init(PARAMS)
    for grads, loss in zip(GRADS[:steps], LOSSES):
        params, state = case.step(theta, params, state, grads, loss)
    return params, state


def _assert_close(actual, expected, rtol=1e-5, atol=1e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def _assert_all_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


# For what optax and flax do with any transformation: of every kind of state one.
of_some = pytest.mark.parametrize(
    "case",
    few(
        OPTIMIZERS,
        ["small_fc", "velo", "l2o_pa", "learnable_muon", "hypergradient", "compact"],
    ),
    indirect=True,
)


# For what any update does without jit, whose many small programs are what it costs:
# the relatives' updates are those of rules that are in the table themselves.
of_rules = pytest.mark.parametrize(
    "case",
    few(OPTIMIZERS, set(OPTIMIZERS) - set(VARIANTS) - RELATIVES),
    indirect=True,
)


def _avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_arguments_rebuild_the_optimizer(case):
    optimizer = case.optimizer
    arguments = json.loads(json.dumps(optimizer.arguments))
    if not optimizer.name:
        assert not arguments  # `mup`, whose multipliers may be a function
        return
    factories = {**l2o.factories(), **l2o.wrapper_factories()}
    assert set(arguments) == set(l2o.defaults_of(factories[optimizer.name]))
    rebuilt = l2o.make(optimizer.name, **arguments)
    assert (rebuilt.name, rebuilt.arguments) == (optimizer.name, optimizer.arguments)
    _assert_close(rebuilt.init_theta(jax.random.key(0)), case.theta, rtol=0, atol=0)


def test_theta_is_float32_whatever_the_default_precision(case):
    for x64 in (False, True):
        with jax.enable_x64(x64):
            theta = jax.eval_shape(case.optimizer.init_theta, jax.random.key(0))
        assert {x.dtype for x in jax.tree.leaves(theta)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [(l2o.mlp(), 1762), (l2o.small_fc(), 197), (l2o.small_fc(hidden_size=32), 2409)],
    ids=["mlp", "small_fc", "small_fc-32"],
)
def test_theta_has_the_published_size(optimizer, size):
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == size


def test_networks_start_with_truncated_normal_weights():
    theta = init_mlp(jax.random.key(0), [100, 50, 2])
    assert jax.tree.map(jnp.shape, theta) == {
        **{"w0": (100, 50), "w1": (50, 2)},
        **{"b0": (50,), "b1": (2,)},
    }
    assert 0.19 < np.abs(theta["w0"]).max() <= 0.2
    # A normal distribution cut at two deviations keeps 0.8796 of its deviation.
    np.testing.assert_allclose(np.std(theta["w0"]), 0.08796, rtol=0.03)
    np.testing.assert_array_equal(theta["b0"], 0)


@pytest.mark.parametrize(
    ("optimizer", "matrix", "vector"),
    [
        # Six momenta.
        (l2o.mlp(), 24 * 40, 24 * 40),
        # Three momenta, a second moment; three factored ones of rows and columns.
        (l2o.small_fc(), 16 * 40 + 12 * (8 + 5), 28 * 40 + 12),
    ],
    ids=["mlp", "small_fc"],
)
def test_state_has_the_documented_size(optimizer, matrix, vector):
    theta = optimizer.init_theta(jax.random.key(0))
    for shape, size in (((8, 5), matrix), ((40,), vector)):
        state = optimizer.bind(theta).init(jnp.ones(shape))
        assert sum(x.nbytes for x in jax.tree.leaves(state)) - 4 == size  # count: 4
    state = optimizer.bind(theta).init(jnp.ones((8, 5), jnp.bfloat16))
    assert {x.dtype.name for x in momenta(state)} == {"bfloat16"}


def test_init_theta_under_vmap(case):
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.eval_shape(jax.vmap(case.optimizer.init_theta), keys)
    for x, one in zip(jax.tree.leaves(many), jax.tree.leaves(case.theta)):
        assert x.shape == (2, *one.shape)


@pytest.mark.parametrize("num_steps", [None, 7])
def test_bind_accepts_a_horizon(case, num_steps):
    if num_steps is None and "num_steps" in case.optimizer.needs:
        remedy = r"needs the length .*`optimizer\.bind\(theta, num_steps=\.\.\.\)`"
        with pytest.raises(ValueError, match=remedy):
            case.optimizer.bind(case.theta)
        return
    tx = case.optimizer.bind(case.theta, num_steps=num_steps)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    jax.eval_shape(lambda g, p: tx.update(g, tx.init(p), p, value=0.5), PARAMS, PARAMS)


def test_bind_accepts_a_traced_horizon(case):
    if case.optimizer.name == "extend_horizon":
        pytest.skip("the length of the run decides what is compiled")

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


@pytest.mark.parametrize("name", l2o.factories())
def test_factory_is_documented(name):
    doc = inspect.getdoc(l2o.factories()[name])
    for part in (".. math::", "Args:", "Example:", ">>> ", "Source:"):
        assert part in doc, part


def test_doctests_pass():
    results = {}
    others = ("l2o.tasks", "l2o.meta_train", "l2o.checkpoints")  # have theirs tested
    for module in pkgutil.walk_packages(
        l2o.__path__, "l2o.", onerror=lambda name: None
    ):
        if not module.name.startswith(others):
            results[module.name] = doctest.testmod(importlib.import_module(module.name))
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 2 * len(
        l2o.factories()
    )


@of_rules
def test_jit_equals_no_jit(case):
    params, state = PARAMS, case.tx.init(PARAMS)
    for grads, loss in zip(GRADS, LOSSES):
        updates, state = case.tx.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    _assert_close((params, state), _run(case))
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
        # Bound anew, because a recurrent state starts in theta.
        tx = case.optimizer.bind(theta, num_steps=NUM_STEPS)
        for j, params in enumerate(starts):
            state = tx.init(params)
            expected = case.step(theta, params, state, GRADS[j], LOSS)
            _assert_close(jax.tree.map(lambda x, i=i, j=j: x[i, j], result), expected)


@of_some
def test_scan_equals_loop(case):
    def body(carry, given):
        (params, state), (grads, loss) = carry, given
        updates, state = case.tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    grads = jax.tree.map(lambda *x: jnp.stack(x), *GRADS)
    carry, _ = jax.jit(lambda carry: lax.scan(body, carry, (grads, LOSSES)))(
        (PARAMS, case.tx.init(PARAMS))
    )
    _assert_close(carry, _run(case))


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
    if case.optimizer.name == "float32_updates":
        grads = optax.tree.cast(grads, jnp.float32)
    assert _avals(updates) == _avals(grads)
    assert _avals(new_state) == _avals(state)
    jax.eval_shape(
        lambda skip, state: lax.cond(skip, lambda s: s, lambda s: update(s)[1], state),
        True,
        state,
    )


@of_rules
def test_bfloat16_is_computed_in_float32(case):
    params, grads = optax.tree.cast((PARAMS, GRADS[0]), jnp.bfloat16)
    updates, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    params, grads = optax.tree.cast((params, grads), jnp.float32)
    expected, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    _assert_close(optax.tree.cast(updates, jnp.float32), expected, rtol=2**-8)


# Their parts are those of others.
_LONG = (
    "celo",
    "celo_adam",
    "elo_celo2",
    "celo2",
    "normalized_velo",
    "elo",
    "l2o_scale",
    "mulo",
    "nn_adam",
    "rnn_mlp",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in _LONG else [])
        for name in l2o.factories()
    ],
)
def test_gradient_of_theta_through_one_and_two_updates_is_finite(name):
    optimizer = FACTORIES[name]

    def losses(theta):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        params, state = PARAMS, tx.init(PARAMS)
        for grads in GRADS[:2]:
            updates, state = tx.update(grads, state, params, value=LOSS)
            params = optax.apply_updates(params, updates)
            yield jnp.sum(params["w"] ** 2)

    theta = optimizer.init_theta(jax.random.key(0))
    slopes = jax.jit(lambda x, to: jax.vjp(lambda x: tuple(losses(x)), x)[1](to))
    for cotangent in ((1.0, 0.0), (0.0, 1.0)):
        (gradient,) = slopes(theta, jax.tree.map(jnp.float32, cotangent))
        _assert_all_finite(gradient)
        assert optax.tree.norm(gradient) > 1e-6


def test_zero_gradients_give_finite_updates(case):
    zeros = optax.tree.zeros_like(PARAMS)
    params, state = PARAMS, case.tx.init(PARAMS)
    for _ in range(2):
        params, state = case.step(case.theta, params, state, zeros, LOSS)
    _assert_all_finite((params, state))


class Pair(NamedTuple):
    first: Any
    second: Any


def _ones(*shape):
    return jnp.full(shape, 0.5)


TREES = {
    "bare": _ones(3, 3),
    "shapes": {"scalar": _ones(), "vector": _ones(4), "conv": _ones(3, 3, 2, 4)},
    "size_one_axes": {"row": _ones(1, 4), "one": _ones(1, 1), "vector": _ones(1)},
    "no_elements": {"matrix": _ones(0, 3), "vector": _ones(0), "full": _ones(2)},
    "empty": {},
    "nested": {
        "a": (Pair(_ones(2), [_ones(3, 2)]), {}),
        "b": {"c": Pair(None, _ones())},
    },
}


@pytest.fixture(scope="module")
def first_steps(case):
    """Of every tree, in one program: the first state, the updates, the second state."""

    @jax.jit
    def steps(trees):
        found = {}
        for name, params in trees.items():
            state = case.tx.init(params)
            updates = case.tx.update(params, state, params, value=LOSS)
            found[name] = (state, *updates)
        return found

    return steps(TREES)


@pytest.mark.parametrize("name", TREES)
def test_tree(first_steps, name):
    params = TREES[name]
    state, updates, new_state = first_steps[name]
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert _avals(updates) == _avals(params)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert _avals(new_state) == _avals(state)
    _assert_all_finite((updates, new_state))
    for update in jax.tree.leaves(updates):
        assert np.all(update != 0)


@of_rules
def test_numpy_trees_are_accepted(case):
    params = jax.tree.map(np.asarray, PARAMS)
    grads = jax.tree.map(np.asarray, GRADS[0])
    updates, _ = case.tx.update(grads, case.tx.init(params), params, value=LOSS)
    expected, _ = case.tx.update(GRADS[0], case.tx.init(PARAMS), PARAMS, value=LOSS)
    _assert_close(updates, expected)


@of_rules
def test_unexpected_extra_argument_is_swallowed(case):
    extra = {"unexpected_extra_args_your_optimizer_doesnt_expect": object()}
    state = case.tx.init(PARAMS)
    updates, _ = case.tx.update(GRADS[0], state, PARAMS, value=LOSS, **extra)
    expected, _ = case.tx.update(GRADS[0], state, PARAMS, value=LOSS)
    _assert_close(updates, expected, rtol=0, atol=0)


@pytest.mark.parametrize("missing", ["params", "value"])
def test_what_is_missing_names_the_call_to_write(case, missing):
    state = case.tx.init(PARAMS)
    given = {"params": PARAMS, "value": LOSS} | {missing: None}
    if missing not in case.optimizer.needs:
        case.tx.update(GRADS[0], state, **given)
        return
    what = {"params": "the current parameters", "value": "the loss"}[missing]
    remedy = (
        rf"needs {what}: call "
        r"`updates, state = tx\.update\(grads, state, params, value=loss\)`"
    )
    with pytest.raises(ValueError, match=remedy):
        case.tx.update(GRADS[0], state, **given)


def test_map_params_finds_what_belongs_to_parameters(case):
    params, _ = WITH_BIAS
    state = case.tx.init(params)
    names = {name: name for name in params}
    # As a sharding is assigned: one value per parameter, handed in as a tree.
    mapped = optax.tree.map_params(
        case.tx,
        lambda _, name: name,
        state,
        names,
        transform_non_params=lambda _: "other",
    )
    for path, name in jax.tree_util.tree_leaves_with_path(mapped):
        assert name == names.get(getattr(path[-1], "key", None), "other")


def _first(tx, grads=GRADS[0], params=PARAMS):
    """The first update."""
    return tx.update(grads, tx.init(params), params, value=LOSS)[0]


@of_rules
def test_inside_chain(case):
    max_norm = 0.1
    clipped = optax.tree.scale(max_norm / optax.tree.norm(GRADS[0]), GRADS[0])
    chained = optax.chain(optax.clip_by_global_norm(max_norm), case.tx)
    _assert_close(_first(chained), _first(case.tx, clipped))


@pytest.mark.exhaustive  # `test_inside_partition` masks
def test_inside_masked(case):
    params, grads = WITH_BIAS
    updates = _first(optax.masked(case.tx, {"b": False, "w": True}), grads, params)
    alone = _first(case.tx, {"w": grads["w"]}, {"w": params["w"]})
    _assert_close(updates, {"b": grads["b"], **alone})


@of_rules
def test_inside_partition(case):
    params, grads = WITH_BIAS
    labels = {"b": "plain", "w": "learned"}
    parted = optax.partition({"learned": case.tx, "plain": optax.sgd(0.1)}, labels)
    alone = _first(case.tx, {"w": grads["w"]}, {"w": params["w"]})
    _assert_close(_first(parted, grads, params), {"b": -0.1 * grads["b"], **alone})


@of_rules
def test_inside_inject_hyperparams(case):
    scaled = optax.inject_hyperparams(
        lambda scale: optax.chain(case.tx, optax.scale(scale))
    )(scale=0.5)
    expected = _first(case.tx)
    _assert_close(_first(scaled), optax.tree.scale(0.5, expected))
    state = scaled.init(PARAMS)
    state.hyperparams["scale"] = jnp.float32(2)
    updates, _ = scaled.update(GRADS[0], state, PARAMS, value=LOSS)
    _assert_close(updates, optax.tree.scale(2, expected))


@of_some
def test_inside_multi_steps(case):
    every = optax.MultiSteps(case.tx, every_k_schedule=2)
    update = jax.jit(
        lambda g, state: every.update(g, state, PARAMS, value=LOSS), donate_argnums=1
    )
    idle, state = update(GRADS[0], every.init(PARAMS))
    _assert_close(idle, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    updates, state = update(GRADS[1], state)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *GRADS[:2])
    expected = case.tx.update(mean, case.tx.init(PARAMS), PARAMS, value=LOSS)
    _assert_close((updates, state.inner_opt_state), expected)


@of_some
def test_inside_apply_if_finite(case):
    guarded = optax.apply_if_finite(case.tx, max_consecutive_errors=3)
    update = jax.jit(lambda g, state: guarded.update(g, state, PARAMS, value=LOSS))
    nan = {"w": GRADS[0]["w"].at[0, 0].set(jnp.nan)}
    updates, state = update(nan, guarded.init(PARAMS))
    assert state.notfinite_count == 1
    _assert_close(updates, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    _assert_close(state.inner_state, case.tx.init(PARAMS), rtol=0, atol=0)
    updates, state = update(GRADS[0], state)
    assert state.notfinite_count == 0
    expected = case.tx.update(GRADS[0], case.tx.init(PARAMS), PARAMS, value=LOSS)
    _assert_close((updates, state.inner_state), expected)


def _linear_loss(params, x):
    bias, weights = params.values()
    return jnp.mean((x @ weights + bias - 1) ** 2)


X = jnp.asarray(np.random.default_rng(4).standard_normal((4, 3)), jnp.float32)


def _linear_by_hand(case, params):
    state = case.tx.init(params)
    for _ in range(2):
        loss, grads = jax.value_and_grad(_linear_loss)(params, X)
        updates, state = case.tx.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return params


@of_some
def test_flax_nnx_optimizer(case):
    from flax import nnx

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    expected = _linear_by_hand(
        case, {"bias": model.bias[...], "kernel": model.kernel[...]}
    )
    optimizer = nnx.Optimizer(model, case.tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, grads, value=loss)

    for _ in range(2):
        train_step(model, optimizer, X)
    actual = {"bias": model.bias[...], "kernel": model.kernel[...]}
    _assert_close(actual, expected)


@pytest.mark.exhaustive  # a haiku tree is a dict of dicts, which `test_tree` has
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
    _assert_close(params["linear"], expected)
