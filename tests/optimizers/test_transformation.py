"""What `l2o.transformation` gives to an optimizer of one's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o

SHARED = jnp.ones(3)


def careless():
    """A rule whose state shares buffers with itself, the parameters and a constant."""

    def init(params):
        zeros = jnp.zeros(2)
        return {"a": zeros, "b": zeros, "params": params["w"], "constant": SHARED}

    def update(grads, state, params=None, **extra):
        del params, extra
        return grads, {**state, "params": grads["w"], "b": state["a"]}

    return l2o.transformation(init, update, name="careless")


PARAMS = {"w": jnp.arange(4.0)}


def test_buffers_are_copied_once_they_are_shared():
    tx = careless()
    state = tx.init(PARAMS)
    leaves = [*jax.tree.leaves(state), *jax.tree.leaves(PARAMS)]
    pointers = [x.unsafe_buffer_pointer() for x in leaves]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(lambda p, s: tx.update(p, s, p), donate_argnums=1)
    updates, state = step(PARAMS, state)
    updates, state = step(PARAMS, state)
    np.testing.assert_array_equal(updates["w"], PARAMS["w"])
    np.testing.assert_array_equal(state["params"], PARAMS["w"])
    # Without jit too.
    updates, state = tx.update(PARAMS, state, PARAMS)
    assert state["params"] is not PARAMS["w"] and state["b"] is not state["a"]


def test_the_old_name_still_works_and_says_what_it_is_called_now():
    with pytest.warns(DeprecationWarning, match=r"l2o\.transformation now"):
        tx = l2o.stable_dtypes(lambda params: (), lambda g, s, p=None: (g, s))
    assert tx.update(PARAMS, (), PARAMS)[0]["w"].dtype == jnp.float32


def test_gradients_are_cut_unless_a_rule_sees_to_it():
    def sees(finite):
        seen = []

        def update(grads, state, params=None):
            del params
            seen.append(grads["w"])
            return grads, state

        tx = l2o.transformation(lambda params: (), update, finite=finite)
        tx.update({"w": jnp.array([-3e38, 2.0])}, (), {"w": jnp.ones(2)})
        return np.asarray(seen[0])

    np.testing.assert_array_equal(sees(True), np.float32([-1e15, 2]))
    np.testing.assert_array_equal(sees(False), np.float32([-3e38, 2]))


class Counts(NamedTuple):
    total: Any
    skipped: Any = None


def adder(inner=None):
    """Adds gradients up; its state has, or has not, a count of skipped steps."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return Counts(zeros) if inner is None else inner.init(params)

    def update(grads, state, params=None, **extra):
        if inner is not None:
            return inner.update(grads, state, params, **extra)
        assert state.skipped is None
        total = optax.tree.add(state.total, grads)
        return total, Counts(total)

    return l2o.transformation(init, update)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted_once(bad, depth, jit):
    tx = adder()
    for _ in range(depth - 1):
        tx = adder(tx)
    step = jax.jit(tx.update) if jit else tx.update
    params = {"w": jnp.zeros(2), "n": jnp.int32(3), "empty": jnp.zeros((0, 2))}
    state = tx.init(params)
    good = {**params, "w": jnp.array([1.0, 2.0])}
    broken = {**params, "w": jnp.array([1.0, bad])}
    total = np.zeros(2)
    for skipped, grads in enumerate((good, broken, broken, good, broken)):
        updates, state = step(grads, state, params)
        total += np.array([1.0, 2.0]) * (grads is good)
        expected = total if grads is good else np.zeros(2)
        np.testing.assert_array_equal(updates["w"], expected)
        assert updates["n"] == 0 and updates["empty"].shape == (0, 2)
        np.testing.assert_array_equal(state.total["w"], total)
        assert state.skipped == (0, 1, 2, 2, 3)[skipped]


def test_of_several_runs_at_once_one_is_skipped():
    tx = adder()
    grads = {"w": jnp.array([[1.0, 2.0], [jnp.nan, 2.0]])}
    state = jax.vmap(tx.init)(grads)
    updates, state = jax.jit(jax.vmap(lambda g, s: tx.update(g, s)))(grads, state)
    np.testing.assert_array_equal(updates["w"], [[1, 2], [0, 0]])
    np.testing.assert_array_equal(state.skipped, [0, 1])


@pytest.mark.parametrize("value", [2.0, np.inf])
def test_derivatives_are_those_of_the_step_or_of_none(value):
    def loss(factor, grads, total, choose):
        def update(grads, state, params=None):
            # What a rule closes over has derivatives, too.
            total = jax.tree.map(lambda t, g: t + factor * g**2, state.total, grads)
            return total, Counts(total)

        tx = l2o.transformation(lambda params: Counts(params), update, finite=False)
        tx = tx if choose else l2o.without_skipping(tx)
        state = Counts({"w": total}, jnp.int32(0))
        updates, state = jax.jit(tx.update)({"w": grads}, state)
        return jnp.sum(updates["w"] * jnp.arange(1.0, 3.0) + state.total["w"])

    given = jnp.float32(3.0), jnp.array([1.5, value]), jnp.array([0.5, -1.0])
    expected = jax.grad(loss, (0, 1, 2))(*given, False)
    if not np.isfinite(value):
        expected = 0.0, np.zeros(2), np.ones(2)
    found = jax.grad(loss, (0, 1, 2))(*given, True)
    forwards = jax.jit(jax.jacfwd(loss, (0, 1, 2)), static_argnums=3)(*given, True)
    several = jax.vmap(jax.grad(loss, (0, 1, 2)), (None, 0, None, None))(
        given[0], given[1][None], given[2], True
    )
    for x, y, z, many in zip(expected, found, forwards, several, strict=True):
        for derivative in (y, z, many[0]):
            np.testing.assert_allclose(derivative, x, rtol=1e-6)


def test_derivatives_of_runs_at_once_whose_rule_reads_integers_and_keys():
    def update(grads, state, params=None, *, n, key):
        noise = jax.random.normal(key)
        total = jax.tree.map(lambda t, g: t + n * noise * g**2, state.total, grads)
        return total, Counts(total)

    tx = l2o.transformation(lambda params: Counts(params), update)
    grads = jnp.array([[1.0, 2.0], [3.0, jnp.inf]])
    keys = jax.random.split(jax.random.key(0))

    def one(g, key, n):
        state = Counts(jnp.zeros(2), jnp.int32(0))
        return jnp.sum(tx.update(g, state, n=n.astype(jnp.float32), key=key)[0])

    def loss(grads):
        runs = lambda n: jax.vmap(one, (0, 0, None))(grads, keys, n)
        return jnp.sum(jax.lax.map(runs, jnp.arange(1, 3)))

    noise = jax.random.normal(keys[0])
    expected = [3 * noise * 2 * grads[0], jnp.zeros(2)]
    for derivative in (
        jax.grad(loss),
        jax.jit(jax.grad(loss)),
        jax.grad(jax.jit(loss)),
    ):
        np.testing.assert_allclose(derivative(grads), expected, rtol=1e-6)


def test_without_skipping_nothing_is_chosen():
    tx = l2o.without_skipping(adder())
    grads = {"w": jnp.array([1.0, jnp.nan])}
    state = tx.init(grads)
    texts = [jax.jit(x.update).lower(grads, state).as_text() for x in (tx, adder())]
    assert ["stablehlo.while" in text for text in texts] == [False, True]
    updates, state = tx.update(grads, state)
    np.testing.assert_array_equal(updates["w"], [1, 0])
    assert state.skipped == 0


def test_errors_of_a_rule_are_its_own():
    def update(grads, state, params=None):
        raise ValueError("a problem of the rule")

    tx = l2o.transformation(optax.tree.zeros_like, update)
    with pytest.raises(ValueError, match="a problem of the rule"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_a_state_whose_shapes_broadcast_is_refused():
    def update(grads, state, params=None):
        return grads, jax.tree.map(jnp.add, state, grads)

    tx = l2o.transformation(optax.tree.zeros_like, update, name="adding")
    with pytest.raises(ValueError, match=r"adding got a state that does not fit"):
        tx.update(PARAMS, {"w": jnp.zeros(1)}, PARAMS)


def test_runs_that_are_mapped_inside_shard_map_skip_each_its_own_steps():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = adder()

    def each(grads):
        state = tx.init(grads)
        return tx.update(grads, state)

    mapped = jax.shard_map(
        jax.vmap(each), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d")
    )
    grads = {"w": jnp.array([[1.0, 2.0], [jnp.nan, 2.0]])}
    updates, state = jax.jit(mapped)(grads)
    np.testing.assert_array_equal(updates["w"], [[1, 2], [0, 0]])
    np.testing.assert_array_equal(state.skipped, [0, 1])
