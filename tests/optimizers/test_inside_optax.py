"""Every optimizer inside what optax, flax and haiku wrap around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    GRADS,
    LOSS,
    PARAMS,
    WITH_BIAS,
    assert_trees_close,
    of_rules,
    of_some,
)


@of_rules
def test_unexpected_extra_argument_is_swallowed(case):
    extra = {"unexpected_extra_args_your_optimizer_doesnt_expect": object()}
    state = case.tx.init(PARAMS)
    updates, _ = case.tx.update(GRADS[0], state, PARAMS, value=LOSS, **extra)
    expected, _ = case.tx.update(GRADS[0], state, PARAMS, value=LOSS)
    assert_trees_close(updates, expected, rtol=0, atol=0)


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
    assert_trees_close(_first(chained), _first(case.tx, clipped))


@pytest.mark.exhaustive  # `test_inside_partition` masks
def test_inside_masked(case):
    params, grads = WITH_BIAS
    updates = _first(optax.masked(case.tx, {"b": False, "w": True}), grads, params)
    alone = _first(case.tx, {"w": grads["w"]}, {"w": params["w"]})
    assert_trees_close(updates, {"b": grads["b"], **alone})


@of_rules
def test_inside_partition(case):
    params, grads = WITH_BIAS
    labels = {"b": "plain", "w": "learned"}
    parted = optax.partition({"learned": case.tx, "plain": optax.sgd(0.1)}, labels)
    alone = _first(case.tx, {"w": grads["w"]}, {"w": params["w"]})
    assert_trees_close(_first(parted, grads, params), {"b": -0.1 * grads["b"], **alone})


@of_rules
def test_inside_inject_hyperparams(case):
    scaled = optax.inject_hyperparams(
        lambda scale: optax.chain(case.tx, optax.scale(scale))
    )(scale=0.5)
    expected = _first(case.tx)
    assert_trees_close(_first(scaled), optax.tree.scale(0.5, expected))
    state = scaled.init(PARAMS)
    state.hyperparams["scale"] = jnp.float32(2)
    updates, _ = scaled.update(GRADS[0], state, PARAMS, value=LOSS)
    assert_trees_close(updates, optax.tree.scale(2, expected))


@of_some
def test_inside_multi_steps(case):
    every = optax.MultiSteps(case.tx, every_k_schedule=2)
    update = jax.jit(
        lambda g, state: every.update(g, state, PARAMS, value=LOSS), donate_argnums=1
    )
    idle, state = update(GRADS[0], every.init(PARAMS))
    assert_trees_close(idle, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    updates, state = update(GRADS[1], state)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *GRADS[:2])
    expected = case.tx.update(mean, case.tx.init(PARAMS), PARAMS, value=LOSS)
    # The two means round differently, which an inverse enlarges.
    assert_trees_close((updates, state.inner_opt_state), expected, rtol=3e-4)


@of_some
def test_inside_apply_if_finite(case):
    guarded = optax.apply_if_finite(case.tx, max_consecutive_errors=3)
    update = jax.jit(lambda g, state: guarded.update(g, state, PARAMS, value=LOSS))
    nan = {"w": GRADS[0]["w"].at[0, 0].set(jnp.nan)}
    updates, state = update(nan, guarded.init(PARAMS))
    assert state.notfinite_count == 1
    assert_trees_close(updates, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    assert_trees_close(state.inner_state, case.tx.init(PARAMS), rtol=0, atol=0)
    updates, state = update(GRADS[0], state)
    assert state.notfinite_count == 0
    expected = case.tx.update(GRADS[0], case.tx.init(PARAMS), PARAMS, value=LOSS)
    assert_trees_close((updates, state.inner_state), expected)


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
    assert_trees_close(actual, expected)


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
    assert_trees_close(params["linear"], expected)
