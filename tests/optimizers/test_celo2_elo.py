"""Celo2, ELO and muLO against slow forms; the axes that they factor."""

import numpy as np
import pytest
from helpers import never_skipping, normal
from side_by_side import SOME, assert_follows, problem, random_theta
from slow_forms import GROUPS, SlowCelo2, SlowElo

import l2o
from l2o.rule._accumulators import factored_axes

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
    assert_follows(never_skipping(optimizer), SlowElo, (params, grads))


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
