"""`extend_horizon`: means over several calls, and short runs as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_close
from jax import lax
from probe import GRADS, LOSSES, PARAMS, RATE, SHAPES, bound, probe, steps, tree

import l2o


@pytest.mark.parametrize(
    ("num_steps", "max_steps", "k"),
    [(21, 10, 3), (20, 10, 2), (11, 10, 2), (400_000, 150_000, 3), (7, 3, 3)],
)
def test_extend_horizon_averages(num_steps, max_steps, k):
    optimizer = l2o.extend_horizon(probe(), max_steps)
    assert optimizer.needs == ("params", "num_steps")
    tx = bound(optimizer, num_steps=num_steps)

    def step(state, given):
        updates, state = tx.update(given[0], state, PARAMS, value=given[1])
        return state, (updates, state.inner)

    grads = tree(lambda *x: jnp.stack(x), *GRADS)
    given = (grads, jnp.array(LOSSES))
    _, (updates, seen) = jax.jit(lambda s: lax.scan(step, s, given))(tx.init(PARAMS))
    np.testing.assert_array_equal(seen.num_steps, num_steps // k)
    np.testing.assert_array_equal(seen.calls, np.arange(1, 8) // k)
    for t in range(7):
        window = slice(t - k + 1, t + 1)
        for name in SHAPES:
            if (t + 1) % k:
                assert np.all(updates[name][t] == 0)
                continue
            mean = np.mean(np.float64(grads[name][window]), 0)
            assert_close(seen.gradient[name][t], mean)
            assert_close(updates[name][t], -RATE * mean)
            np.testing.assert_allclose(seen.value[t], np.mean(LOSSES[window]), 1e-6)


def test_extend_horizon_leaves_short_runs_alone():
    inner = l2o.celo_adam(lstm_hidden_size=3)
    theta = inner.init_theta(KEY)
    for num_steps in (1, 9, 10):
        tx = l2o.extend_horizon(inner, 10).bind(theta, num_steps=num_steps)
        plain = inner.bind(theta, num_steps=num_steps)
        for (*_, u, s), (*_, v, r) in zip(steps(tx), steps(plain)):
            assert jax.tree.structure(s) == jax.tree.structure(r)
            assert_close((u, s), (v, r), rtol=0, atol=0)


def test_extend_horizon_names_what_is_missing():
    tx = bound(l2o.extend_horizon(l2o.celo_adam(lstm_hidden_size=3), 10), num_steps=11)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="needs the loss: call"):  # a skipped call
        tx.update(GRADS[0], state, PARAMS)
    with pytest.raises(ValueError, match="needs the current parameters: call"):
        tx.update(GRADS[0], state, value=1.0)
    optimizer = l2o.extend_horizon(probe(()), 10)
    theta = optimizer.init_theta(KEY)
    for refused in (None, jnp.int32(20)):
        with pytest.raises(
            ValueError, match="^extend_horizon needs the length .* as a"
        ):
            jax.jit(lambda n: optimizer.bind(theta, num_steps=n).init(PARAMS))(refused)
    tx = optimizer.bind(theta, num_steps=20)
    state = tx.update(GRADS[0], tx.init(PARAMS))[1]
    assert np.isnan(tx.update(GRADS[1], state)[1].inner.value)  # still not given


def test_extend_horizon_leaves_out_what_is_not_finite():
    tx = bound(l2o.extend_horizon(probe(), 10), num_steps=20)
    grads = [GRADS[0], tree(lambda g: g * jnp.nan, GRADS[1]), *GRADS[2:4]]
    *_, third, last = steps(tx, grads=grads, losses=[1, jnp.nan, 3, 5], move=0)
    assert third[4].count == 2 and last[4].count == 3
    assert_close(third[4].inner.gradient, tree(lambda x, y: (x + y) / 2, *grads[::2]))
    assert third[4].inner.value == 2


def test_extend_horizon_averages_low_precision_in_float32():
    grads = [jnp.full(2, x, jnp.bfloat16) for x in (1, 2**-8, 2**-8, 2**-8)]
    p = jnp.ones(2, jnp.bfloat16)
    for inner in (probe(), l2o.float32_updates(probe())):
        tx = bound(l2o.extend_horizon(inner, 5), num_steps=20)
        *_, last = steps(tx, p, grads)
        assert last[3].dtype == jnp.bfloat16
        # A sum in bfloat16 would stay at one.
        mean = (1 + 3 * 2**-8) / 4
        np.testing.assert_allclose(last[4].inner.gradient, mean, rtol=1e-6)
        assert last[3][0] == jnp.bfloat16(-RATE * mean)
