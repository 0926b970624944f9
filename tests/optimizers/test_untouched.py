"""What has had no gradient is not pushed by the network: it decays, and that is all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_optimizer import RELATIVES, SMALL_SIZES, WITH_UNTOUCHED, small
from helpers import assert_close, normal

import l2o
from l2o.kernels import _dispatch as _per_parameter
from l2o.rule._accumulators import Accumulators
from l2o.rule._features import FEATURES
from l2o.rule._rule import Rule, held

# The others have networks of their own.
RULES = [
    x
    for x in WITH_UNTOUCHED
    if x not in ("l2o_scale", "lstm", "mlp", "rnn_mlp", "rnnprop")
]
OPTIONS = {
    "learning_rate": 0.1,
    "weight_decay": 0.5,
    "orthogonalize": True,
    **SMALL_SIZES,
}
MATRIX = {"matrix": (6, 4)}
SHAPES = {**MATRIX, "kernel": (2, 3, 5), "vector": (7,)}
# The compiler's optimisations would take most of the time.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def used(shape):
    """True for the entries that have gradients: not for the last two rows."""
    return np.broadcast_to(np.arange(shape[-1]) < shape[-1] - 2, shape)


def first_update(optimizer, backend="xla", part=True, shapes=SHAPES):
    """The parameters and their update, by gradients for a part of them or for all."""
    rng = np.random.default_rng(0)
    theta = jax.tree.map(
        lambda x: np.float32(0.3 * rng.standard_normal(x.shape)),
        jax.eval_shape(optimizer.init_theta, jax.random.key(0)),
    )
    params, grads = normal(0, shapes), normal(1, shapes)
    if part:
        grads = {k: jnp.where(used(x.shape), x, 0.0) for k, x in grads.items()}

    @quick
    def run(theta, params):
        tx = optimizer.bind(theta, num_steps=10)
        return tx.update(grads, tx.init(params), params, value=jnp.float32(1.0))[0]

    with l2o.backend(backend):
        return jax.device_get((params, run(theta, params)))


def test_all_rules_of_accumulators_have_the_choice():
    rules = [
        name
        for name, factory in l2o.factories().items()
        if {"momentum_decays", "adafactor_decays"} <= set(l2o.defaults_of(factory))
    ]
    assert sorted(rules) == sorted(RULES)
    for name in WITH_UNTOUCHED:
        with pytest.raises(
            ValueError, match="unknown untouched 'kept'; known: held, p"
        ):
            l2o.make(name, untouched="kept")
        assert l2o.make(name).arguments["untouched"] == "held"


# What relatives of `celo2_base` and `velo` hand on, `test_each_rule_is_told` sees.
CASES = [
    pytest.param(
        name, None, marks=[pytest.mark.exhaustive] if name in RELATIVES else []
    )
    for name in WITH_UNTOUCHED
]
CASES += [("celo2_base", "pallas"), ("celo2_base", "xla"), ("small_fc", "xla")]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_what_has_had_no_gradient_decays_and_that_is_all(name, backend):
    shapes = MATRIX if backend == "pallas" else SHAPES
    params, updates = first_update(small(name, OPTIONS), backend, shapes=shapes)
    slopes = []
    for key, update in updates.items():
        still = ~used(update.shape)
        slopes.append(update[still] / params[key][still])
        assert np.any(update[~still] != slopes[-1][0] * params[key][~still])
    slopes = np.concatenate(slopes)
    if "weight_decay" in small(name, OPTIONS).arguments:
        assert np.all(slopes < 0)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_told(name, monkeypatch):
    rules = []

    def recorded(rule, tensor, *_):
        rules.append(rule)
        return tensor.param, tensor.accumulators

    monkeypatch.setattr(_per_parameter, "update_one", recorded)

    def update(optimizer):
        theta, params = optimizer.init_theta(jax.random.key(0)), normal(0, MATRIX)
        tx = optimizer.bind(theta, num_steps=10)
        return tx.update(params, tx.init(params), params, value=jnp.float32(1.0))

    with l2o.backend("xla"):
        for untouched in ("held", "pushed"):
            jax.eval_shape(
                lambda u=untouched: update(small(name, OPTIONS, untouched=u))
            )
    assert [rule.holds for rule in rules] == [True, False]


def test_as_published_it_is_pushed():
    for backend in (None, "xla"):
        optimizer = small("celo2_base", OPTIONS, untouched="pushed")
        params, updates = first_update(optimizer, backend, shapes=MATRIX)
        slopes = (updates["matrix"] / params["matrix"])[~used(MATRIX["matrix"])]
        assert np.ptp(slopes) > 0.1


@pytest.mark.parametrize("orthogonalize", [False, True])
def test_steps_have_their_size_where_they_are_made(orthogonalize):
    optimizer = l2o.celo2_base(learning_rate=1.0, orthogonalize=orthogonalize)
    _, updates = first_update(optimizer, None)
    for update in updates.values():
        kept = used(update.shape)
        over = tuple(range(max(update.ndim - 2, 0), update.ndim))
        square = np.sum(update**2, over) / np.sum(kept, over)
        np.testing.assert_allclose(square, 1.0, rtol=1e-4)


def test_nothing_changes_where_all_have_gradients():
    updates, pushed = (
        first_update(
            small("celo2_base", OPTIONS, untouched=u), part=False, shapes=MATRIX
        )[1]
        for u in ("held", "pushed")
    )
    assert_close(updates, pushed)


def test_it_is_held_some_hundred_updates_after_the_last_gradient():
    rule = Rule(FEATURES, FEATURES, 0.0)
    steps = np.arange(1000.0)
    for decay in (0.95, 0.999):
        m, v = 0.1 * 0.9**steps, (1 - decay) * decay**steps
        moments = Accumulators((jnp.float32(m),), (jnp.float32(v),))
        still = np.asarray(held(rule, jnp.float32(0 * m), moments))
        first = np.argmax(still)
        assert 100 < first < 300
        assert np.all(still[first:])


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        (Accumulators(), [True, False, False]),
        (Accumulators((np.float32([0, 1e-20, 1]),)), [True, False, False]),
        (
            Accumulators((np.float32([0, 1e-9, 1]),), (np.float32([1, 1, 1e15]),)),
            [True, True, False],
        ),
    ],
    ids=["gradients", "momenta", "second_moments"],
)
def test_what_counts_as_no_gradient(moments, expected):
    rule = Rule(FEATURES, FEATURES, 0.0)
    moments = jax.tree.map(jnp.asarray, moments)
    grad = jnp.float32([0, 1e-30, 1])
    assert held(rule, grad, moments).tolist() == expected
    assert held(rule._replace(holds=False), grad, moments) is None
