"""What a stranger's training loop does to every optimizer, and must be able to do."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import FACTORIES, NUM_STEPS, WRAPPED
from helpers import few

import l2o

# An embedding of which two rows are used, a part that is frozen, a counter. There are
# few tensors, because these tests cost what XLA has to compile.
PARAMS = {"embedding": (4, 3), "frozen": (2,), "b": (3,)}
USED = np.arange(4) < 2
SHIPPED = {name: l2o.load_unbound(name) for name in l2o.shipped()}
ARCHITECTURES = {**FACTORIES, **WRAPPED}


def arrays(seed):
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return {**tree, "steps": jnp.int32(7), "none": None}


def gradients(seed):
    grads = arrays(seed)
    grads["embedding"] *= USED[:, None]
    return {**grads, "frozen": jnp.zeros(2), "steps": jnp.int32(0)}


class Case(NamedTuple):
    optimizer: l2o.LearnedOptimizer
    theta: Any
    tx: optax.GradientTransformationExtraArgs
    step: Any  # compiled; parameters and state are donated


def bound(optimizer, theta):
    def step(theta, params, state, grads):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        updates, state = tx.update(grads, state, params, value=jnp.float32(0.5))
        return optax.apply_updates(params, updates), state

    tx = optimizer.bind(theta, num_steps=NUM_STEPS)
    return Case(optimizer, theta, tx, jax.jit(step, donate_argnums=(1, 2)))


# Of the files that ship, one of each kind of optimizer: what else differs is numbers.
OF_A_KIND = ("adaptive_muon", "normalized_mixed", "small_fc_mixed")


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *few(SHIPPED, set(OF_A_KIND))])
def case(request):
    """One optimizer, compiled once: every architecture, wrapper and shipped one."""
    if request.param in SHIPPED:
        return bound(*SHIPPED[request.param])
    optimizer = ARCHITECTURES[request.param]
    return bound(optimizer, optimizer.init_theta(jax.random.key(0)))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def traced(request):
    """One optimizer that is not compiled: every architecture and wrapper."""
    optimizer = ARCHITECTURES[request.param]
    return bound(optimizer, optimizer.init_theta(jax.random.key(0)))


def after(case, all_grads, seed=0):
    """Parameters and state after these gradients, donated every time."""
    params = arrays(seed)
    state = case.tx.init(params)
    for grads in all_grads:
        params, state = case.step(case.theta, params, state, grads)
    return params, state


def buffers(*trees):
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(trees) if x.size]


def test_state_owns_its_buffers(case):
    for params in (arrays(0), {}):
        found = buffers(case.tx.init(params), params, case.theta)
        assert len(set(found)) == len(found)


def test_state_can_be_donated_fresh_and_updated(case):
    params, state = after(case, [gradients(seed) for seed in (1, 2, 3)])
    found = buffers(params, state, case.theta)
    assert len(set(found)) == len(found)
    assert not any(x.is_deleted() for x in jax.tree.leaves(case.theta))


def test_what_has_no_gradient_only_decays(case):
    start = arrays(0)
    params, _ = after(case, [gradients(seed) for seed in range(1, 9)])
    embedding = params["embedding"]
    unused = embedding[~USED] / start["embedding"][~USED]
    kept = np.append(unused, params["frozen"] / start["frozen"])
    decay = kept[0]
    # The same share of every entry, to rounding.
    np.testing.assert_allclose(kept, decay, rtol=1e-5)
    if has_decay(case.optimizer.arguments) or case.optimizer.name == "decay_weights":
        assert 0.5 < decay < 1
    else:
        assert decay == 1
    moved = np.abs(embedding - start["embedding"])[USED]
    assert np.all(np.max(moved, 1) > 0)
    assert params["steps"] == 7 and params["none"] is None


def has_decay(arguments):
    return (
        arguments.get("weight_decay", 0) > 0 or arguments.get("decay_per_step", 0) > 0
    )


def test_zero_gradients_move_nothing(case):
    zeros = optax.tree.zeros_like(gradients(1))
    start = arrays(0)
    params, state = after(case, [zeros] * 12)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True):
        assert np.all(np.abs(x) <= np.abs(y))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("bad", [1e30, -1e38])
def test_a_large_entry_does_not_end_the_run(case, bad):
    grads = [gradients(seed) for seed in (1, 2, 3)]
    grads[1]["embedding"] = grads[1]["embedding"].at[0, 0].set(bad)
    grads[1]["b"] = grads[1]["b"].at[:].set(bad)
    params, state = after(case, grads)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((params, state)))
    assert l2o.skipped_steps(state) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_with_a_bad_entry_is_as_if_it_had_not_been(case, bad):
    grads = [gradients(seed) for seed in (1, 2)]
    entry, tensor, every = (gradients(3) for _ in range(3))
    entry["embedding"] = entry["embedding"].at[0, 0].set(bad)
    tensor["b"] = jnp.full(3, bad)
    every = {k: x if k in ("steps", "none") else x + bad for k, x in every.items()}
    params, state = after(case, [grads[0], entry, tensor, every, grads[1]])
    assert l2o.skipped_steps(state) == 3
    without, expected = after(case, grads)
    assert l2o.skipped_steps(expected) == 0
    expected = counted(expected, 3)
    for x, y in zip(
        jax.tree.leaves((params, state)),
        jax.tree.leaves((without, expected)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def counted(state, skipped):
    """The state with these many skipped steps."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + skipped if "skipped" in str(path[-1]) else x, state
    )


def test_state_comes_back_from_numpy_flax_and_safetensors(case, tmp_path):
    import flax.serialization
    import safetensors.numpy

    _, state = after(case, [gradients(1)])
    leaves = jax.tree.leaves(state)
    structure = jax.tree.structure(state)
    by_name = {str(i): np.asarray(x) for i, x in enumerate(leaves)}
    assert all(x.size for x in leaves)  # orbax refuses arrays of size zero
    content = flax.serialization.to_bytes(leaves)
    flaxed = flax.serialization.from_bytes(leaves, content)
    found = [flaxed]
    # Which NumPy lacks, and safetensors, which reads through it.
    if all(x.dtype != jnp.bfloat16 for x in leaves):
        safe = safetensors.numpy.load(safetensors.numpy.save(by_name))
        found.append([safe[k] for k in by_name])
        np.savez(tmp_path / "state.npz", **by_name)
        with np.load(tmp_path / "state.npz") as file:
            found.append([file[k] for k in by_name])
    for loaded in found:
        again = structure.unflatten([jnp.asarray(x) for x in loaded])
        for x, y in zip(jax.tree.leaves(again), leaves, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_strict_settings_of_jax_change_nothing(traced):
    params, grads = arrays(0), gradients(1)

    def avals():
        out = jax.eval_shape(
            lambda p, g: traced.tx.update(g, traced.tx.init(p), p, value=0.5),
            params,
            grads,
        )
        return jax.tree.map(lambda x: (x.shape, x.dtype), out)

    expected = avals()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert avals() == expected


def test_float64_parameters_keep_their_type(traced):
    with jax.enable_x64(True):
        params = {"w": jnp.ones((3, 2), jnp.float64)}
        updates, state = jax.eval_shape(
            lambda p: traced.tx.update(p, traced.tx.init(p), p, value=0.5), params
        )
        before = jax.eval_shape(traced.tx.init, params)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(
        lambda x: x.dtype, before
    )
    if traced.optimizer.name != "float32_updates":
        assert updates["w"].dtype == jnp.float64


def test_the_state_says_how_long_the_run_is(traced):
    needed = "num_steps" in traced.optimizer.needs
    if not needed and traced.optimizer.name != "learnable_muon":
        return
    state = traced.tx.init({"w": jnp.ones((3, 2))})
    found = [
        float(x)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if getattr(path[-1], "name", "") == "num_steps"
    ]
    assert found and set(found) == {NUM_STEPS}


def test_empty_groups_of_partition_and_masked(traced):
    params = {"w": jnp.ones((3, 2))}
    mine = traced.tx
    groups = {"mine": mine, "other": optax.sgd(0.1)}
    for tx in (
        optax.partition(groups, {"w": "other"}),
        optax.masked(mine, {"w": False}),
    ):
        state = tx.init(params)
        assert all(np.size(x) for x in jax.tree.leaves(state))
        new = jax.eval_shape(
            lambda p, s, tx=tx: tx.update(p, s, p, value=0.5)[1], params, state
        )
        assert jax.tree.structure(new) == jax.tree.structure(state)


LEAVES = {
    "complex": (jnp.ones(2, jnp.complex64), "is complex: .*split_real_and_imaginary"),
    "key": (jax.random.key(0), "is a PRNG key: .*optax.masked"),
    "function": (jax.nn.relu, "is a custom_jvp: .*eqx.filter"),
    "string": ("relu", "is a str: .*nnx.state"),
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_that_cannot_be_updated_are_named(traced, leaf):
    value, message = LEAVES[leaf]
    with pytest.raises(ValueError, match=rf"params\['x'\] {message}"):
        traced.tx.init({"w": jnp.ones(2), "x": value})


def test_the_remedy_for_complex_parameters_works():
    tx = optax.contrib.split_real_and_imaginary(l2o.load("adaptive_muon", num_steps=9))
    params = {"w": jnp.full((3, 2), 1.0 + 2.0j)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.complex64
    assert np.all(np.imag(updates["w"]) < 0) and np.all(np.real(updates["w"]) < 0)


def test_python_floats_are_parameters(traced):
    params = {"a": 1.0, "n": 3, "flag": True}
    grads = {"a": 0.5, "n": np.zeros((), jax.dtypes.float0), "flag": False}
    state = traced.tx.init(params)
    updates, _ = jax.eval_shape(
        lambda s: traced.tx.update(grads, s, params, value=0.5), state
    )
    assert updates["a"].dtype == jnp.float32
    assert updates["n"].dtype == jnp.int32 and updates["flag"].dtype == jnp.bool_


def test_shapes_are_enough_or_refused(traced):
    shapes = {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    arrays = {"w": jnp.ones((3, 2))}
    expected = jax.eval_shape(traced.tx.init, arrays)
    assert jax.eval_shape(traced.tx.init, shapes) == expected
    try:
        state = traced.tx.init(shapes)
    except ValueError as error:
        assert "jax.eval_shape(tx.init, params)" in str(error)
        return
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )


def test_gradients_of_another_model_are_named(traced):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    state = traced.tx.init(params)
    given = {"state": state, "params": params, "value": 0.5}
    with pytest.raises(ValueError, match=r"shape \(3, 1\) for params\['w'\].*\(3, 2\)"):
        traced.tx.update({**params, "w": jnp.ones((3, 1))}, **given)
    with pytest.raises(ValueError, match=r"lack params\['b'\] and have params\['c'\]"):
        traced.tx.update({"w": params["w"], "c": params["b"]}, **given)


def test_state_of_another_model_is_named(traced):
    state = traced.tx.init({"w": jnp.ones((3, 2))})
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(2)}
    if jax.eval_shape(traced.tx.init, params) == jax.eval_shape(lambda: state):
        return  # of `learnable_sgd`, a mere count
    with pytest.raises(ValueError, match=r"state that does not fit.*tx\.init\(params"):
        traced.tx.update(params, state, params, value=0.5)


class Module(NamedTuple):
    """As an equinox module is filtered: what is no array is None in gradients."""

    w: Any
    activation: Any


def test_gradients_of_filtered_modules(traced):
    filtered = Module(jnp.ones((3, 2)), None)
    state = traced.tx.init(filtered)
    for params in (filtered, Module(filtered.w, jax.nn.relu)):
        updates, _ = jax.eval_shape(
            lambda s, p=params: traced.tx.update(filtered, s, p, value=0.5), state
        )
        assert updates.activation is None and updates.w.shape == (3, 2)


def test_a_parameter_of_another_magnitude_changes_no_other_step():
    params = {"w1": (8, 4), "b": (4,), "w2": (4, 2)}
    rng = np.random.default_rng(0)
    params = {
        k: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)
        for k, shape in params.items()
    }
    grads = {k: jnp.sign(x) for k, x in params.items()}
    outliers = {
        "constant": jnp.float32(1e4),
        "buffer": jnp.arange(512.0),
        "table": jnp.full((2, 2), 1e5),
    }

    def first(optimizer, params, grads):
        tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)), num_steps=9)
        state = jax.jit(tx.init)(params)
        updates, _ = jax.jit(tx.update)(grads, state, params, value=0.5)
        return {k: updates[k] for k in ("w1", "b", "w2")}

    relative = [
        l2o.learnable_muon(),
        l2o.celo2_base(relative=True, hidden_size=4),
        l2o.small_fc(relative=True),
        l2o.normalized_velo(hidden_size=4),
    ]
    for optimizer in relative:
        expected = first(optimizer, params, grads)
        for name, outlier in outliers.items():
            more = first(
                optimizer,
                {**params, name: outlier},
                {**grads, name: jnp.ones_like(outlier)},
            )
            for k, update in more.items():
                # The network of normalized_velo sees the other tensors.
                tolerance = 0.2 if optimizer.name == "normalized_velo" else 1e-4
                np.testing.assert_allclose(
                    np.linalg.norm(update),
                    np.linalg.norm(expected[k]),
                    rtol=tolerance,
                    err_msg=f"{optimizer.name} {name} {k}",
                )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_weight_decay_is_obeyed_by_everything_that_ships(name):
    """What has no gradient loses a share in proportion to it."""

    def kept(decay):
        tx = l2o.load(name, num_steps=NUM_STEPS, weight_decay=decay)
        params, state = arrays(0), tx.init(arrays(0))
        update = jax.jit(tx.update)
        for seed in (1, 2, 3):
            updates, state = update(gradients(seed), state, params, value=0.5)
            params = optax.apply_updates(params, updates)
        kept = params["frozen"] / arrays(0)["frozen"]
        np.testing.assert_allclose(kept, kept[0], rtol=1e-6)
        return float(kept[0])

    assert kept(0) == kept(0.0) == 1
    lost = [-np.log(kept(decay)) for decay in (1.0, 2.0)]
    assert lost[0] > 0.005
    np.testing.assert_allclose(lost[1] / lost[0], 2, rtol=0.05)
    for bad in (-0.1, "0.1", float("nan"), True):
        with pytest.raises(ValueError, match="weight_decay to be a finite number >= 0"):
            l2o.load(name, num_steps=NUM_STEPS, weight_decay=bad)


def test_a_weight_decay_of_zero_is_none_as_an_array_too():
    for zero in (0, 0.0, np.float32(0), jnp.float32(0)):
        optimizer = l2o.learnable_muon(weight_decay=zero)
        theta = optimizer.init_theta(jax.random.key(0))
        assert all(np.isfinite(x) for x in jax.tree.leaves(theta))
        assert optimizer.arguments["weight_decay"] == 0


def test_nans_are_the_users_where_jax_looks_for_them():
    tx = l2o.load("adaptive_muon", num_steps=9)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    bad = {**params, "b": jnp.array([0.0, np.nan])}
    state = tx.init(params)
    with jax.debug_nans(True):
        tx.update(params, state, params)
        tx.update(optax.tree.zeros_like(params), state, params)
        message = r"gradient of params\['b'\] is not finite before the optimizer"
        with pytest.raises(FloatingPointError, match=message):
            tx.update(bad, state, params)
