"""VeLO, its normalised form, and Celo against slow forms; what they see and decide."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import normal
from side_by_side import LOSSES, SHAPES, SOME, assert_follows, problem, random_theta
from slow_forms import NUM_STEPS, SlowHyper, SlowNormalizedVeLO

import l2o
from l2o.recurrent._loss_features import init_loss_buffer, update_loss_buffer

VELO = {"lstm_hidden_size": 6, "param_inits": 3, "exp_mult": 0.03, "step_mult": 0.1}
# Of a constant loss what the features show from the third step on is rounding alone.
CONSTANT = {"constant_loss": True}


@pytest.mark.parametrize(
    "arguments",
    [
        {"ff_mult": 3.0},
        {
            "features": SOME,
            "mix_layers": False,
            "validation_mode": True,
            "precondition_output": True,
            "param_scale_bound": 0.1,
            "rnn_state_decay": 0.3,
            "ff_mult": 2.0,
        },
        {
            "published": ("bugged_next_lstm_state", "bugged_loss_features"),
            "validation_mode": False,
            "param_scale_mult": False,
            "rnn_state_decay": 0.3,
            "hidden_size": 9,
            "hidden_layers": 1,
            "ff_mult": 2.0,
        },
        {**CONSTANT, "features": ["g", "fac_m"], "exp_mult": 1e-4, "step_mult": 1e-3},
    ],
    ids=["default", "ablated", "bugged", "constant_loss"],
)
def test_velo_equals_its_slow_form(arguments):
    optimizer = l2o.velo(**{**VELO, **arguments})
    steps = 2 if optimizer.arguments["constant_loss"] else 4
    state, slow = assert_follows(optimizer, SlowHyper, atol=3e-4, steps=steps)
    np.testing.assert_allclose(state.lstm.hidden, slow.hidden, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state.lstm.cell, slow.cell, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state.loss.mean, slow.loss.mean, rtol=1e-5)


def test_velo_does_not_count_axes_of_size_one():
    params, grads = problem()
    given = [{"row": x["vector"].reshape(1, 4)} for x in (params, *grads)]
    optimizer = l2o.velo(**VELO, ff_mult=3.0)
    assert_follows(optimizer, SlowHyper, (given[0], given[1:]), atol=3e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"train_phase": 1},
        {
            "features": SOME,
            "param_inits": 3,
            "validation_mode": True,
            "precondition_output": True,
            "param_scale_bound": 0.1,
            "rnn_state_decay": 0.3,
        },
        {"mix_layers": False, "param_scale_mult": False, **CONSTANT},
    ],
    ids=["default", "phase_1", "bank", "ablated"],
)
def test_celo_equals_its_slow_form(arguments):
    optimizer = l2o.celo(lstm_hidden_size=6, exp_mult=0.3, step_mult=0.1, **arguments)
    steps = 2 if optimizer.arguments["constant_loss"] else 4
    state, slow = assert_follows(optimizer, SlowHyper, atol=5e-5, steps=steps)
    # One row stands for the equal rows of all tensors.
    assert state.lstm.hidden.shape == (1, 6)
    rows = np.tile(state.lstm.hidden, (len(SHAPES), 1))
    np.testing.assert_allclose(rows, slow.hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bias_correction": False, "mix_layers": False, "param_scale_mult": True},
        {"b2": 0.95, "eps": 1e-2, "validation_mode": False, "rnn_state_decay": 0.3},
    ],
    ids=["default", "ablated", "eps"],
)
def test_celo_adam_equals_its_slow_form(arguments):
    optimizer = l2o.celo_adam(lstm_hidden_size=6, step_mult=0.1, **arguments)
    assert_follows(optimizer, SlowHyper, atol=1e-4)  # float32 has few digits of 1 - b2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"features": ("g", "p", "m_norm", "col"), "hidden_layers": 1},
        {"orthogonalize": True, "weight_decay": 0.3},
    ],
)
def test_normalized_velo_equals_its_slow_form(arguments):
    optimizer = l2o.normalized_velo(lstm_hidden_size=6, schedule_mult=0.5, **arguments)
    state, slow = assert_follows(optimizer, SlowNormalizedVeLO, atol=3e-4)
    np.testing.assert_allclose(state.lstm.hidden, slow.hidden, rtol=0, atol=1e-4)


def test_the_scale_of_all_parameters_is_that_of_the_steps():
    optimizer = l2o.normalized_velo(lstm_hidden_size=4)
    theta = optimizer.init_theta(jax.random.key(0))  # the rate is the prior's
    shapes = {"w": (5, 3), "b": (4,), "zero": (3, 2)}
    params, grads = normal(0, shapes), normal(1, shapes)
    params["zero"] = jnp.zeros_like(params["zero"])
    ends = []
    for size in (1.0, 100.0):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        scaled = optax.tree.scale(size, params)
        state = tx.init(scaled)
        updates, _ = tx.update(grads, state, scaled, value=1.0)
        ends.append(jax.tree.map(lambda x: np.sqrt(np.mean(x**2)), updates))
    typical = np.sqrt(np.mean(params["w"] ** 2))  # of the matrices that are not zero
    first = 0.01 / (0.05 * NUM_STEPS)
    expected = {"w": typical, "b": typical, "zero": typical / 10}
    for k, rms in expected.items():
        np.testing.assert_allclose(ends[0][k], first * rms, rtol=1e-4)
        np.testing.assert_allclose(ends[1][k], 100 * ends[0][k], rtol=1e-4)


def losses_seen(losses, num_steps=100):
    buffer = init_loss_buffer(jnp.float32(num_steps))
    for count, loss in enumerate(losses):
        buffer, features = update_loss_buffer(buffer, jnp.float32(loss), count)
        yield np.asarray(features)


def test_loss_features_start_with_the_third_loss():
    first, second, third = losses_seen([3.0, 1.0, 2.0])
    assert first.shape == (9,)
    np.testing.assert_array_equal([first, second], 0)
    assert np.all(np.abs(third) > 1e-3)
    # What is beyond twice the largest mean is cut to that, even infinity.
    *_, cut = losses_seen([3.0, 1.0, np.inf])
    np.testing.assert_array_equal(cut, [*losses_seen([3.0, 1.0, 1e9])][-1])
    assert np.all(np.isfinite(cut))


def first_two(optimizer, renamed=lambda tree: tree):
    params, grads = problem()
    tx = optimizer.bind(random_theta(optimizer), num_steps=NUM_STEPS)
    params = renamed(params)
    state = tx.init(params)
    for g, loss in zip(grads[:2], LOSSES):
        updates, state = tx.update(renamed(g), state, params, value=loss)
    return updates


@pytest.mark.parametrize(
    "optimizer",
    [
        l2o.velo(**VELO, ff_mult=3.0),
        l2o.celo(lstm_hidden_size=6),
        l2o.celo_adam(lstm_hidden_size=6),
    ],
    ids=["velo", "celo", "celo_adam"],
)
def test_order_of_tensors_does_not_matter(optimizer):
    names = dict(zip(SHAPES, "cbeda"))

    def renamed(tree):
        return {names[k]: x for k, x in tree.items()}

    exact = optimizer.name != "velo"  # in which rows share a matrix product
    for k, x in renamed(first_two(optimizer)).items():
        other = first_two(optimizer, renamed)[k]
        np.testing.assert_allclose(x, other, rtol=0 if exact else 1e-4)


def test_celo_decides_for_each_tensor_alone():
    optimizer = l2o.celo(lstm_hidden_size=6)
    alone = first_two(optimizer, lambda tree: {"conv": tree["conv"]})
    np.testing.assert_array_equal(alone["conv"], first_two(optimizer)["conv"])


@pytest.mark.parametrize("arguments", [{}, {"mix_layers": False}])
def test_phases_of_celo_cover_theta(arguments):
    phases = [l2o.celo(train_phase=phase, **arguments) for phase in (1, 2)]
    theta = phases[0].init_theta(jax.random.key(0))
    first, second = (set(phase.frozen) for phase in phases)
    assert first | second == set(theta) and not first & second
    small = {"lstm_hidden_size": 4, **arguments}
    for phase, frozen in ((1, first), (2, second)):
        optimizer = l2o.celo(train_phase=phase, **small)
        theta = random_theta(optimizer)

        def move(theta, optimizer=optimizer):
            params, grads = {"v": jnp.ones(3)}, {"v": jnp.array([1.0, -2.0, 0.5])}
            tx = optimizer.bind(theta, num_steps=NUM_STEPS)
            return tx.update(grads, tx.init(params), params, value=1.0)[0]["v"]

        moved = {
            k: np.any(
                move({**theta, k: jax.tree.map(lambda x: 2 * x, v)}) != move(theta)
            )
            for k, v in theta.items()
        }
        # The schedule has no effect in its absence; `controls` never has.
        without = {"controls"} | (frozen if phase == 1 else set())
        assert {k for k, x in moved.items() if not x} == without
