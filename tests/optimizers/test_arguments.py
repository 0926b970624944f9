"""An argument that a user gives is obeyed or refused, by factories and by `load`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_optimizer import FACTORIES, NUM_STEPS, SMALL, TINY

import l2o

PARTS = ("optimizer", "learned", "direction", "magnitude")
# Where an argument matters only beside another one.
BASE = {
    "celo2_base": {"orthogonalize": True, "exp_mult": 0.1, "weight_decay": 0.1},
    "celo2": {"exp_mult": 0.1, "weight_decay": 0.1},
    "elo": {"weight_decay": 0.1},
    "elo_celo2": {"exp_mult": 0.1},
    "normalized_velo": {"orthogonalize": True},
    "l2o_pa": {"b": ("sigmoid", 1.0), "b1": ("eye", 1.0), "prox": "l1"},
    "decay_weights": {"decay_per_step": 0.1, "kind": "l2"},
}
# A second value of each; numbers are changed by a little, flags turned.
OTHER = {
    "a": ("exp", 1.0),
    "activation": "tanh",
    "adam_bias_correction": True,
    "b": ("eye", 1.0),
    "b1": {"l2o_pa": ("exp", 1.0)},
    "b2": {"l2o_pa": ("exp", 1.0)},
    "factor_bound": 7.0,
    "factor_bounds": (0.5, 2.0),
    "features": ("g", "m", "rms"),
    "global_input": "last_tensor",
    "init": "adam",
    "kind": {"decay_weights": "after", "nominal": "sgd"},
    "level_sizes": (4, 5, 6),
    "layout": "torch_velo",
    "max_norm": 2.0,
    "max_tensor_norm": 1.0,
    "momentum": {"compact": "nearest"},
    "mult_1d": 3.0,
    "ns_coeffs": (2.0, -1.5, 0.5),
    "ns_precision": "bfloat16",
    "p": ("exp", 1.0),
    "param_scale_bound": 0.5,
    "preprocess": "identity",
    "prox": "none",
    "published": {
        **dict.fromkeys(("celo", "celo_adam"), ()),
        **dict.fromkeys(("elo", "mulo"), ("fused_row_mean",)),
        "velo": ("dead_mix_layer", "bugged_next_lstm_state"),
    },
    "regex_1d": "w",
    "orthogonal": "newton_schulz",
    "schedule": "cosine",
    "second_moment": "factored",
    "state_bytes": 10,
    "state_scale": 0.5,
    "step_mult": 0.02,
    "train_phase": 1,
    "untouched": "pushed",
    "validation_mode": True,
    "variant": {"celo2": "pylo", "rnnprop": "ms4l2o"},
    "weight_decay_1d": 0.3,
}
# What has an effect on published files alone, or is seen only where axes are of one
# size: the tests of files, of kernels and of axes see it.
ELSEWHERE = {
    ("axes", "*"),
    ("embeddings", "*"),
    ("layout", "*"),
    ("seed", "rnnprop"),
    ("max_steps", "extend_horizon"),
}
PARAMS = {"w": jnp.ones((3, 3, 2)), "bias": jnp.ones(3)}


def changed(name, argument, value):
    other = OTHER.get(argument)
    if isinstance(other, dict):
        other = other.get(name)
    if other is not None:
        return other
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 0.5 * value if value else 0.25
    return [0.5 * x for x in value]


def behaviour(optimizer, shapes=PARAMS):
    """Everything that an optimizer does: its programs, with all their constants."""
    key = jax.random.key(0)
    start, theta = jax.make_jaxpr(optimizer.init_theta, return_shape=True)(key)

    def run(theta, params, grads, value):
        tx = optimizer.bind(theta, num_steps=NUM_STEPS)
        state = tx.init(params)
        extra = {"grad_fn": lambda params: params}
        return state, tx.update(grads, state, params, value=value, **extra)

    jaxpr = jax.make_jaxpr(run)(theta, shapes, shapes, 0.5)
    consts = [np.asarray(x).tobytes() for x in (*start.consts, *jaxpr.consts)]
    programs = (str(start), str(jaxpr))
    return programs, str(jax.tree.structure(theta)), consts, optimizer.frozen


@functools.cache
def made(name):
    """An optimizer with arguments that let every other one matter."""
    factory = {**l2o.factories(), **l2o.wrapper_factories()}[name]
    known = l2o.defaults_of(factory)
    given = {k: TINY for k in PARTS if k in known}
    if name == "compact":
        given["optimizer"] = FACTORIES["small_fc"]
    if name == "grafted":
        given["magnitude"] = l2o.learnable_adam()
    if name == "extend_horizon":
        given["optimizer"] = FACTORIES["celo_adam"]
    small = {
        k: v
        for k, v in (SMALL[name].arguments if name in SMALL else {}).items()
        if k.endswith(("_size", "_sizes", "_inits", "_to_ff"))
    }
    arguments = {**given, **small, **BASE.get(name, {})}
    optimizer = factory(**arguments)
    return factory, {**known, **arguments}, behaviour(optimizer)


# Arguments of one rule, which its relatives hand on.
_RULE = set(l2o.defaults_of(l2o.celo2_base)) - {"learning_rate"}
_RELATIVES = ("celo2", "elo_celo2", "normalized_velo", "mulo", "elo", "celo")


def _is_seen_elsewhere(name, argument):
    return name in _RELATIVES and argument in _RULE


CASES = [
    pytest.param(
        name,
        argument,
        marks=[pytest.mark.exhaustive] if _is_seen_elsewhere(name, argument) else [],
    )
    for name, factory in {**l2o.factories(), **l2o.wrapper_factories()}.items()
    for argument in l2o.defaults_of(factory)
    if argument not in PARTS and not {(argument, "*"), (argument, name)} & ELSEWHERE
]


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_every_argument_is_obeyed(name, argument):
    factory, arguments, before = made(name)
    value = changed(name, argument, arguments[argument])
    assert behaviour(factory(**{**arguments, argument: value})) != before


def saved(folder, optimizer):
    return l2o.save(folder, optimizer, optimizer.init_theta(jax.random.key(1)))


STARTS = [
    (name, argument)
    for name, optimizer in FACTORIES.items()
    for argument in optimizer.starts
    if argument != "init"
]


@pytest.mark.parametrize(("name", "argument"), STARTS)
def test_what_theta_starts_from_is_obeyed_on_loading(name, argument, tmp_path):
    optimizer = FACTORIES[name]
    folder = saved(tmp_path / "weights", optimizer)
    value = 0.5 * optimizer.arguments[argument] + 0.1
    loaded, theta = l2o.load_unbound(folder, **{argument: value})
    fresh = l2o.make(name, **{**optimizer.arguments, argument: value})
    expected = fresh.init_theta(jax.random.key(0))
    named = dict(zip(names(theta), jax.tree.leaves(theta), strict=True))
    wanted = dict(zip(names(expected), jax.tree.leaves(expected), strict=True))
    for leaf in optimizer.starts[argument]:
        np.testing.assert_array_equal(named[leaf], wanted[leaf])
    assert loaded.arguments[argument] == value
    again = l2o.load_unbound(l2o.save(tmp_path / "again", loaded, theta))[1]
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(theta)))


def names(theta):
    return [
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(theta)
    ]


@pytest.mark.parametrize(
    "name", [k for k, x in FACTORIES.items() if "init" in x.starts]
)
def test_trained_weights_are_not_replaced_on_loading(name, tmp_path):
    folder = saved(tmp_path, FACTORIES[name])
    message = "init is what meta-training .* would replace the trained weights nn"
    with pytest.raises(ValueError, match=message):
        l2o.load_unbound(folder, init="nadam" if name != "small_fc" else "adam")
    l2o.load_unbound(folder, init="random")  # what it was


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_of_shipped_weights_is_obeyed(decay):
    params = {"w": jnp.full((3, 2), 2.0)}
    zeros = {"w": jnp.zeros((3, 2))}
    for name in (
        "adaptive_muon",
        "muon_fast",
        "normalized_mixed",
        "normalized_orthogonal",
    ):
        optimizer, _ = l2o.load_unbound(name)
        tx = l2o.load(name, num_steps=1, weight_decay=decay, learning_rate=0.1)
        updates, _ = tx.update(zeros, tx.init(params), params)
        # In a run of one step there is no warm-up. The rate of meta-trained ones has a
        # factor in theta.
        if optimizer.name == "learnable_muon" and name != "adaptive_muon":
            assert np.all(updates["w"] < 0) if decay else np.all(updates["w"] == 0)
        else:
            np.testing.assert_allclose(updates["w"], -0.1 * decay * 2.0, rtol=1e-5)


def test_what_is_wrapped_is_found_on_loading(tmp_path):
    inner = l2o.learnable_adam(b1=0.8)
    optimizer = l2o.clip_gradients(l2o.hypergradient(inner, gain=5.0))
    assert optimizer.starts["b1"] == ("learned/log_one_minus_b1",)
    loaded, theta = l2o.load_unbound(saved(tmp_path, optimizer), b1=0.5, gain=7.0)
    np.testing.assert_allclose(theta["learned"]["log_one_minus_b1"], np.log(0.5))
    np.testing.assert_allclose(theta["log_gain"], np.log(7.0), rtol=1e-6)
    assert loaded.name == "clip_gradients"
