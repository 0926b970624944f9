"""One contract for every optimizer's updates: all of jax, all trees."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import GRADS, LOSS, LOSSES, PARAMS, assert_trees_close, of_rules, of_some
from every_optimizer import FACTORIES, NUM_STEPS
from jax import lax

import l2o


def _run(case, steps=3, theta=None):
    theta = case.theta if theta is None else theta
    params, state = PARAMS, case.tx.init(PARAMS)
    for grads, loss in zip(GRADS[:steps], LOSSES):
        params, state = case.step(theta, params, state, grads, loss)
    return params, state


def _assert_all_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


def _avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@of_rules
def test_jit_equals_no_jit(case):
    params, state = PARAMS, case.tx.init(PARAMS)
    for grads, loss in zip(GRADS, LOSSES):
        updates, state = case.tx.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    assert_trees_close((params, state), _run(case))
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
            assert_trees_close(
                jax.tree.map(lambda x, i=i, j=j: x[i, j], result), expected
            )


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
    assert_trees_close(carry, _run(case))


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
    assert_trees_close(optax.tree.cast(updates, jnp.float32), expected, rtol=2**-8)


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
    assert_trees_close(updates, expected)
