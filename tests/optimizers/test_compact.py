"""`compact`: what it keeps, and what that does to updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import normal

import l2o
from l2o.rule._accumulators import Accumulators
from l2o.wrappers._compact import stochastic_bfloat16

SMALL_FC = l2o.small_fc(exp_mult=0.1, step_mult=0.1)
SHAPES = {"kernel": (3, 2, 4, 5), "matrix": (6, 4), "scalar": (), "vector": (7,)}


def theta_of(optimizer):
    theta = optimizer.init_theta(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1, theta)


def updates_of(optimizer, grads, params):
    tx = optimizer.bind(theta_of(optimizer), num_steps=100)
    step = jax.jit(lambda g, s: tx.update(g, s, params, value=jnp.float32(1)))
    state, everything = tx.init(params), []
    for grad in grads:
        updates, state = step(grad, state)
        everything.append(updates)
    return everything, state


def accumulators_of(state):
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Accumulators))
    return next(x for x in leaves if isinstance(x, Accumulators))


def worst(actual, expected):
    """Of all tensors the largest difference, in units of the tensor's largest entry."""
    return max(
        float(np.max(np.abs(x - y)) / np.max(np.abs(y)))
        for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    )


def all_bits():
    return jnp.arange(2**16, dtype=jnp.uint16)


@pytest.mark.parametrize("x", [1.0, -1.001, 3.14159, 1e-30, -7e20, 2.0**-126])
def test_stochastic_rounding_is_right_in_the_mean(x):
    x = np.float32(x)
    rounded = stochastic_bfloat16(jnp.full(2**16, x), all_bits())
    values = np.unique(np.float64(rounded))
    assert rounded.dtype == jnp.bfloat16
    assert len(values) <= 2
    assert np.all(np.abs(values - x) < 2.0**-7 * np.abs(x))
    # Over all bits the mean is exact.
    assert np.mean(np.float64(rounded)) == np.float64(x)


def test_stochastic_rounding_of_edges():
    for x in (0.0, -0.0, np.inf, -np.inf, np.nan):
        rounded = stochastic_bfloat16(jnp.full(2**16, x, jnp.float32), all_bits())
        np.testing.assert_array_equal(np.float32(rounded), np.float32(x))


def test_slow_momentum_follows_a_constant_gradient():
    params = {"w": jnp.zeros((40, 50))}
    grads = [{"w": jnp.ones((40, 50))}] * 700
    theta = SMALL_FC.init_theta(jax.random.key(0))  # decays are among it

    def last_momenta(momentum):
        tx = l2o.compact(SMALL_FC, momentum=momentum).bind(theta)

        def step(state, _):
            return tx.update(grads[0], state, params)[1], None

        state = jax.jit(lambda s: jax.lax.scan(step, s, None, 700)[0])(tx.init(params))
        return [np.float64(x["w"]) for x in accumulators_of(state).momentum]

    exact = last_momenta("float32")
    slow = np.mean(exact[-1])
    assert 0.4 < slow < 0.6
    near, chance = last_momenta("nearest")[-1], last_momenta("stochastic")[-1]
    # Above a quarter a thousandth of what is missing is no step to the next bfloat16.
    assert np.all(near < 0.3)
    assert abs(np.mean(chance) - slow) < 0.002
    assert 0.001 < np.std(chance) < 0.03


def test_factored_moments_are_exact_where_squares_are():
    # The squares of an outer product have rank one, whatever its signs and its time.
    def outer(seed):
        sign = jnp.sign(normal(seed, {"w": (6, 4)})["w"])
        size = jnp.outer(jnp.arange(1.0, 7), jnp.array([0.3, 2, 1, 5]))
        return {"w": (seed + 1) * sign * size, "b": normal(seed, {"b": (7,)})["b"]}

    params = normal(9, {"w": (6, 4), "b": (7,)})
    grads = [outer(seed) for seed in range(4)]
    full, _ = updates_of(SMALL_FC, grads, params)
    compact = l2o.compact(SMALL_FC, momentum="float32", second_moment="factored")
    factored, state = updates_of(compact, grads, params)
    assert accumulators_of(state).rms == ()
    assert worst(factored, full) < 1e-5


def test_factored_moments_of_other_squares():
    params, *grads = (normal(seed, SHAPES) for seed in range(5))
    full, _ = updates_of(SMALL_FC, grads, params)
    compact = l2o.compact(SMALL_FC, momentum="float32", second_moment="factored")
    factored, _ = updates_of(compact, grads, params)
    for name in ("scalar", "vector"):
        assert worst([u[name] for u in factored], [u[name] for u in full]) < 1e-5
    # The first moment is what the gradient says.
    assert worst(factored[0], full[0]) < 1e-5
    assert 1e-4 < worst(factored, full) < 0.5


@pytest.mark.parametrize("momentum", ["nearest", "stochastic"])
def test_small_momenta_change_updates_little(momentum):
    params, *grads = (normal(seed, SHAPES) for seed in range(5))
    full, _ = updates_of(SMALL_FC, grads, params)
    small, state = updates_of(l2o.compact(SMALL_FC, momentum=momentum), grads, params)
    dtypes = {x.dtype.name for x in jax.tree.leaves(accumulators_of(state).momentum)}
    assert dtypes == {"bfloat16"}
    # What is kept is rounded, the first update is not yet.
    assert worst(small[0], full[0]) == 0
    assert 1e-6 < worst(small, full) < 0.02


def test_bytes_per_parameter():
    params = {"w": jnp.zeros((500, 400))}

    def size(optimizer):
        state = optimizer.bind(theta_of(optimizer), num_steps=10).init(params)
        return optax.tree.size(state), sum(x.nbytes for x in jax.tree.leaves(state))

    def per_parameter(**kinds):
        return size(l2o.compact(SMALL_FC, **kinds))[1] / 200_000

    rest = 0.06  # rows and columns
    assert size(SMALL_FC)[1] / 200_000 == pytest.approx(16, abs=rest)
    assert per_parameter() == pytest.approx(10, abs=rest)
    assert per_parameter(second_moment="factored") == pytest.approx(6, abs=rest)
    factored = per_parameter(momentum="float32", second_moment="factored")
    assert factored == pytest.approx(12, abs=rest)


@pytest.mark.parametrize(
    "optimizer",
    [
        l2o.celo(lstm_hidden_size=6),
        l2o.celo2(learning_rate=0.1),
        l2o.clip_gradients(l2o.small_fc()),
        l2o.decay_weights(l2o.velo(lstm_hidden_size=6, param_inits=2), 1e-3),
    ],
    ids=["celo", "celo2", "clip", "weight_decay"],
)
def test_whatever_keeps_accumulators(optimizer):
    params, grads = (normal(seed, {"b": (2,), "w": (3, 2)}) for seed in range(2))
    full, _ = updates_of(optimizer, [grads] * 2, params)
    small, _ = updates_of(l2o.compact(optimizer), [grads] * 2, params)
    assert 0 < worst(small, full) < 0.05


def test_without_momenta():
    inner = l2o.celo2_base(momentum_decays=(), features=("g", "p", "rms"))
    params, grads = (normal(seed, {"w": (3, 2)}) for seed in range(2))
    full, _ = updates_of(inner, [grads] * 2, params)
    compact, _ = updates_of(l2o.compact(inner), [grads] * 2, params)
    assert worst(compact, full) == 0


def test_what_it_refuses():
    with pytest.raises(ValueError, match="unknown kind 'half'; known: float32"):
        l2o.compact(SMALL_FC, momentum="half")
    with pytest.raises(ValueError, match="unknown kind 'none'; known: full, factored"):
        l2o.compact(SMALL_FC, second_moment="none")
    params = {"w": jnp.zeros((2, 2))}
    adam = l2o.compact(l2o.learnable_adam())
    with pytest.raises(ValueError, match="keeps no accumulators"):
        adam.bind(theta_of(adam)).init(params)
    two = l2o.small_fc(rms_decays=(0.9, 0.99, 0.999))
    two = l2o.compact(two, second_moment="factored")
    with pytest.raises(ValueError, match="has 3 and 3: give it one rms_decay"):
        two.bind(theta_of(two)).init(params)
