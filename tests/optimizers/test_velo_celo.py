"""VeLO, Celo, Celo2, ELO and muLO against slow forms; their published anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import normal
from slow_forms import (
    GROUPS,
    NUM_STEPS,
    SlowCelo2,
    SlowElo,
    SlowHyper,
    SlowNormalizedVeLO,
)

import l2o
from l2o.recurrent._loss_features import init_loss_buffer, update_loss_buffer
from l2o.rule._accumulators import factored_axes

SHAPES = {
    "conv": (3, 3, 2, 4),
    "matrix": (5, 3),
    "scalar": (),
    "square": (3, 3),
    "vector": (4,),
}
# Every epsilon acts; means of gradients are not small beside their deviation, the
# second gradient of the matrix is cut, the vector's parameters are tiny: see `problem`.
SIZES = {"conv": 1e-1, "matrix": 1.0, "scalar": 1e-3, "square": 1e-4, "vector": 1e-2}
LOSSES = [2.0, 0.7, 5.0, 0.9]
SOME = ["p", "m", "rsqrt_rms", "fac_g", "col", "rsqrt_row", "fac_m"]


def problem():
    rng = np.random.default_rng(0)
    params = {k: np.float32(rng.standard_normal(s)) for k, s in SHAPES.items()}
    grads = [
        {k: np.float32(SIZES[k] * rng.normal(1, 1, s)) for k, s in SHAPES.items()}
        for _ in LOSSES
    ]
    grads[1]["matrix"] *= 2000
    params["vector"] *= np.float32(1e-5)
    return params, grads


def random_theta(optimizer, seed=1):
    rng = np.random.default_rng(seed)

    def noisy(path, x):
        size = 0.03 if "decays" in jax.tree_util.keystr(path) else 0.3
        return np.float32(x + size * rng.standard_normal(x.shape))

    theta = optimizer.init_theta(jax.random.key(0))
    return jax.tree_util.tree_map_with_path(noisy, theta)


def assert_follows(optimizer, slow, given=None, atol=1e-5, steps=4):
    """Runs both side by side from the fast one's parameters; returns what they know."""
    theta = random_theta(optimizer)
    params, grads = problem() if given is None else given
    tx = optimizer.bind(theta, num_steps=NUM_STEPS)
    wide = jax.tree.map(np.float64, theta)
    slow = slow(optimizer.name, wide, dict(optimizer.arguments), params)
    state = tx.init(params)
    # Outputs of the network may cancel in a step, which their round-off does not.
    sizes = dict.fromkeys(params, 0.0)
    for t, (g, loss) in enumerate(zip(grads[:steps], LOSSES)):
        updates, state = tx.update(g, state, params, value=loss)
        wide_g, wide_p = jax.tree.map(np.float64, (g, params))
        expected = dict(slow.update(wide_g, wide_p, loss))
        assert set(expected) == set(updates) == set(params)
        for k, u in expected.items():
            size = np.abs(u).max()
            assert 1e-8 < size < np.inf, f"{k} {t}"  # the comparison means something
            sizes[k] = max(sizes[k], size)
            np.testing.assert_allclose(
                updates[k], u, rtol=0, atol=atol * sizes[k], err_msg=f"{k} {t}"
            )
        params = optax.apply_updates(params, updates)
    return state, slow


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


CELO2 = {
    "scheduled": {"schedule": "cosine", "weight_decay": 0.2},
    "relative": {"relative": True, "weight_decay": 0.2},
    "everything": {
        "exp_mult": 0.3,
        "step_mult": 0.5,
        "param_scale_mult": True,
        "precondition_output": True,
        "aggregate_mag": True,
        "bias_correction": True,
        "activation": "tanh",
        "weight_decay": 0.2,
    },
    "raw": {
        "features": SOME,
        "normalize_input": False,
        "normalize_output": False,
        "param_scale_mult": True,
        "exp_mult": 1e-4,
        "orthogonalize": False,
        "learning_rate": 1e-5,
    },
    "newton_schulz": {
        "orthogonalize": True,
        "ns_coeffs": (2.0, -1.5, 0.5),
        "ns_iters": 2,
        "ns_eps": 0.1,
        "normalize_output": False,
    },
}
ROUTED = {"regex_1d": "square|vector", "learning_rate": 0.1}
OTHER_1D = {"mult_1d": 3.0, "weight_decay": 0.1, "weight_decay_1d": 0.3}


@pytest.mark.parametrize(
    "optimizer",
    [
        *[l2o.celo2_base(**{"learning_rate": 0.1, **a}) for a in ({}, *CELO2.values())],
        *[
            l2o.celo2(**{"variant": variant, **ROUTED, **arguments})
            for variant in ("jax", "pylo")
            for arguments in (
                {},
                {**OTHER_1D, "max_norm": 0.5, "gradient_bound": 3e-4},
                {"adam_b1": 0.5, "adam_eps": 1e-2, "adam_bias_correction": False},
                {"adam_bias_correction": True, "regex_1d": None},
            )
        ],
        l2o.elo_celo2(**ROUTED),
        l2o.elo_celo2(**ROUTED, **OTHER_1D, max_norm=None, gradient_bound=0.05),
    ],
    ids=[
        *["base", *CELO2],
        *[f"{v}-{a}" for v in ("jax", "pylo") for a in ("", "1d", "adam", "all")],
        *["elo_celo2", "elo_celo2-1d"],
    ],
)
def test_celo2_equals_its_slow_form(optimizer):
    assert_follows(optimizer, SlowCelo2, atol=2e-4)  # Newton-Schulz amplifies rounding


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


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_init_adam_is_a_normalised_adam(layers):
    shapes = {"w": (5, 3), "b": (4,)}
    optimizer = l2o.celo2_base(learning_rate=1.0, init="adam", hidden_layers=layers)
    params, *grads = (normal(seed, shapes) for seed in range(4))
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    adam = optax.scale_by_adam(0.9, 0.95, eps=0.0, eps_root=1e-8)
    state, expected = tx.init(params), adam.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        steps, expected = adam.update(g, expected)
    for k, step in steps.items():
        step = -step / np.sqrt(np.mean(step**2))
        np.testing.assert_allclose(updates[k], step, rtol=1e-4, atol=1e-5)
    # What else there is can be learned, from any unit.
    theta = optimizer.init_theta(jax.random.key(0))["nn"]
    assert all(np.all(np.any(theta[f"w{i}"] != 0, 0)) for i in range(layers))


def test_init_nadam_adds_the_normalised_gradient():
    shapes = {"w": (5, 3), "b": (4,)}
    optimizer = l2o.celo2_base(learning_rate=1.0, init="nadam")
    params, *grads = (normal(seed, shapes) for seed in range(4))
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    parts = [optax.scale_by_adam(b1, 0.95, eps=0.0, eps_root=1e-8) for b1 in (0.9, 0)]
    state, states = tx.init(params), [part.init(params) for part in parts]
    for g in grads:
        updates, state = tx.update(g, state, params)
        found = [part.update(g, x) for part, x in zip(parts, states, strict=True)]
        steps, states = zip(*found, strict=True)
    for k in shapes:
        step = sum(x[k] / np.sqrt(np.mean(x[k] ** 2)) for x in steps)
        step = -step / np.sqrt(np.mean(step**2))
        np.testing.assert_allclose(updates[k], step, rtol=1e-4, atol=1e-5)


def test_small_fc_begins_as_a_normalised_adam_times_schedule_and_scale():
    shapes = {"w": (5, 3), "b": (4,)}
    optimizer = l2o.small_fc(
        step_mult=0.1, init="adam", schedule="cosine", relative=True
    )
    params, *grads = (normal(seed, shapes) for seed in range(4))
    theta = optimizer.init_theta(jax.random.key(0))
    tx = optimizer.bind(theta, num_steps=40)
    state = tx.init(params)
    m = v = dict.fromkeys(shapes, 0.0)
    # Of a vector the scale is that of the matrices.
    scales = dict.fromkeys(shapes, np.sqrt(np.mean(params["w"] ** 2)))
    fall = 0.5 + 0.5 * np.cos(np.pi * (2 / 40 - 0.05) / 0.95)
    for g, w in zip(grads, (1 / 2, 2 / 2, fall), strict=True):
        updates, state = tx.update(g, state, params)
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in shapes}
        v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in shapes}
        for k, s in scales.items():
            step = m[k] / np.sqrt(v[k] + 1e-6)
            step = -0.1 * w * s * step / np.sqrt(np.mean(step**2))
            np.testing.assert_allclose(updates[k], step, rtol=1e-4, atol=1e-5)
    assert all(np.all(np.any(theta["nn"][f"w{i}"] != 0, 0)) for i in (0, 1))


@pytest.mark.parametrize(
    "optimizer",
    [
        l2o.celo2_base(learning_rate=1.0, relative=True),
        l2o.small_fc(step_mult=1.0, relative=True, init="adam"),
    ],
    ids=["celo2_base", "small_fc"],
)
def test_relative_steps_do_not_grow_with_the_parameters(optimizer):
    shapes = {"w": (5, 3), "b": (4,), "zero": (3, 3, 2)}
    start, grads = normal(0, shapes), normal(1, shapes)
    start["zero"] = 0 * start["zero"]
    start["w"] = 1e-2 * start["w"]
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    state = tx.init(start)

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    def sizes(params):
        updates, _ = tx.update(grads, state, params)
        return jax.tree.map(rms, updates)

    # Below what it was at the start a scale is that of the parameters as they are,
    half = optax.tree.scale(0.5, start)
    typical = 0.5 * rms(start["w"])  # of the matrices that are not zero
    found = sizes(half)
    np.testing.assert_allclose([found["b"], found["w"]], typical, rtol=1e-4)
    np.testing.assert_allclose(found["zero"], 0.1 * typical, rtol=1e-4)
    # up to that of outputs like the inputs
    moved = {**start, "w": 0.2 * grads["w"], "zero": 0.1 * grads["zero"]}
    found = sizes(moved)
    np.testing.assert_allclose(found["w"], rms(moved["w"]), rtol=1e-4)
    np.testing.assert_allclose(found["zero"], rms(moved["zero"]), rtol=1e-4)
    # and no further, unless it was more at the start.
    found = sizes(optax.tree.scale(1e5, moved))
    np.testing.assert_allclose(found["w"], 1 / np.sqrt(5), rtol=1e-4)
    np.testing.assert_allclose(found["zero"], 1 / np.sqrt(9), rtol=1e-4)
    usual = np.sqrt((15 / 5 + 18 / 9) / 33)
    np.testing.assert_allclose(found["b"], max(rms(start["w"]), usual), rtol=1e-4)
    state = tx.init(optax.tree.scale(1e4, moved))
    np.testing.assert_allclose(
        sizes(optax.tree.scale(1e5, moved))["w"], 1e4 * rms(moved["w"]), rtol=1e-4
    )


def test_without_matrices_relative_steps_grow_to_one():
    optimizer = l2o.celo2_base(learning_rate=1.0, relative=True)
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    params = {"w": np.zeros(5, np.float32)}
    grads = {"w": np.arange(1, 6, dtype=np.float32)}
    state = tx.init(params)
    for size, expected in ((0.0, 1e-3), (0.3, 0.3), (30.0, 1.0)):
        updates, _ = tx.update(grads, state, {"w": params["w"] + np.float32(size)})
        found = np.sqrt(np.mean(np.square(updates["w"])))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_small_fc_needs_the_length_of_the_run_for_a_schedule_only():
    assert l2o.small_fc().needs == ("params",)
    optimizer = l2o.small_fc(schedule="cosine")
    assert optimizer.needs == ("params", "num_steps")
    with pytest.raises(ValueError, match="small_fc needs the length of the training"):
        optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    with pytest.raises(ValueError, match="unknown schedule 'linear'; known: constant"):
        l2o.small_fc(schedule="linear")
    with pytest.raises(ValueError, match='init "nadam" needs .*"g_norm"'):
        l2o.small_fc(init="nadam")


@pytest.mark.parametrize("init", ["adam", "nadam"])
@pytest.mark.parametrize("make", [l2o.celo2_base, l2o.normalized_velo])
def test_init_names_the_features_it_needs(make, init):
    with pytest.raises(ValueError, match=f'init "{init}" needs .*"m_norm"'):
        make(init=init, features=("g", "m"))
    with pytest.raises(ValueError, match="hidden_size >= 2"):
        make(init=init, hidden_size=1)
    with pytest.raises(ValueError, match="unknown init 'sgd'"):
        make(init="sgd")


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


@pytest.mark.parametrize(
    "optimizer",
    [
        l2o.elo(learning_rate=0.1, exp_mult=0.3),
        l2o.elo(learning_rate=0.1, weight_decay=0.5, max_norm=0.1, hidden_size=5),
        l2o.elo(learning_rate=0.1, layout="torch", published=("fused_row_mean",)),
        l2o.mulo(step_mult=0.1, exp_mult=0.3, learning_rate=0.5, max_tensor_norm=0.05),
        l2o.mulo(step_mult=0.1, layout="torch", published=("fused_row_mean",)),
    ],
    ids=["elo", "elo-clip", "elo-fused", "mulo", "mulo-fused"],
)
def test_elo_and_mulo_equal_their_slow_form(optimizer):
    assert_follows(optimizer, SlowElo)


def test_elo_replaces_what_is_not_finite():
    params, grads = problem()
    grads[0]["matrix"][0, 0] = np.nan  # no norm, so that nothing is clipped either
    for g in grads:
        g["matrix"][1] = np.nan
    optimizer = l2o.elo(learning_rate=0.1, max_norm=1e-3, untouched="pushed")
    assert_follows(optimizer, SlowElo, (params, grads))


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


ALL_BUT_CLIPPED = [k for k in GROUPS if k != "clip_g"]


@pytest.mark.parametrize(
    ("factory", "arguments", "over"),
    [
        (l2o.celo2_base, {}, (-2, -1)),
        (l2o.celo2, {}, (-2, -1)),
        # The last two of (out, in, ...).
        (l2o.celo2, {"variant": "pylo"}, (0, 1)),
        (l2o.elo_celo2, {"max_norm": None, "weight_decay": 0.0}, (0, 1)),
    ],
    ids=["base", "jax", "pylo", "elo_celo2"],
)
def test_celo2_steps_have_unit_size_whatever_the_gradients_have(
    factory, arguments, over
):
    optimizer = factory(learning_rate=1.0, features=ALL_BUT_CLIPPED, **arguments)
    tx = optimizer.bind(random_theta(optimizer))
    shapes = {"dense": (5, 3), "layers": (2, 4, 3), "conv": (3, 3, 2, 4)}
    params = normal(0, shapes)
    ends = []
    for size in (1.0, 10.0):
        state = tx.init(params)
        for seed in (1, 2):
            g = {k: size * x for k, x in normal(seed, shapes).items()}
            updates, state = tx.update(g, state, params)
            for u in updates.values():
                np.testing.assert_allclose(np.mean(u**2, over), 1, rtol=2e-4)
        ends.append(updates)
    for k, u in ends[0].items():
        np.testing.assert_allclose(u, ends[1][k], rtol=0, atol=0.01, err_msg=k)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        # Ours, then PyTorch's order, PyLO's VeLO; (in, out) there is (out, in).
        ((5, 3), [(1, 0)] * 3),
        ((3, 5), [(0, 1)] * 3),
        ((4, 4), [(0, 1), (1, 0), (0, 1)]),
        ((3, 3, 64, 64), [(2, 3), (3, 2), (3, 2)]),
        ((3, 3, 16, 32), [(2, 3)] * 3),
        ((2, 5, 3), [(2, 1)] * 3),
        ((7,), [None] * 3),
    ],
)
def test_factored_axes_of_every_rule(shape, axes):
    rules = ("jax", "torch", "torch_velo")
    assert [factored_axes(shape, rule) for rule in rules] == axes
    if len(shape) > 1:
        *_, d1, d0 = np.argsort(shape)
        assert factored_axes(shape, "jax_native") == (d1, d0)
        # Their axis 0 is our last, 1 the one before, and then come the others.
        ours = [len(shape) - 1, len(shape) - 2, *range(len(shape) - 2)]
        *_, d1, d0 = np.argsort([shape[axis] for axis in ours])
        assert factored_axes(shape, "torch_native") == (ours[d1], ours[d0])


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
