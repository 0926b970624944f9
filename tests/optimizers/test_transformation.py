"""What `l2o.transformation` gives to an optimizer of one's own."""

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


def test_gradients_are_finite_unless_a_rule_sees_to_it():
    def sees(finite):
        seen = []

        def update(grads, state, params=None):
            del params
            seen.append(grads["w"])
            return grads, state

        tx = l2o.transformation(lambda params: (), update, finite=finite)
        tx.update({"w": jnp.array([jnp.nan, -jnp.inf, 2.0])}, (), {"w": jnp.ones(3)})
        return np.asarray(seen[0])

    np.testing.assert_array_equal(sees(True), np.float32([0, -1e15, 2]))
    np.testing.assert_array_equal(sees(False), [np.nan, -np.inf, 2])


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
