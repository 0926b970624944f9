"""Every wrapper against closed forms; what is saved and frozen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, assert_close
from probe import GRADS, PARAMS, RATE, SHAPES, SMALL_FC, C, bound, probe, steps, tree

import l2o

RATES = [0.25, {"w": 0.5, "b": 0.0, "s": 0.125}]


@pytest.mark.parametrize("rate", RATES, ids=["number", "tree"])
@pytest.mark.parametrize("inner", [l2o.learnable_sgd(learning_rate=RATE), SMALL_FC])
def test_weight_decay_beside_the_step(inner, rate):
    rates = rate if isinstance(rate, dict) else dict.fromkeys(SHAPES, rate)
    plain = bound(inner)
    for kind in ("decoupled", "after"):
        wrapped = l2o.decay_weights(inner, rate, kind=kind)
        assert wrapped.needs == ("params",)
        alone = plain.init(PARAMS)
        for p, g, loss, updates, state in steps(bound(wrapped)):
            u, alone = plain.update(g, alone, p, value=loss)
            if inner is not SMALL_FC:
                u = tree(lambda x: -RATE * x, g)
            if kind == "decoupled":
                expected = tree(lambda x, p, w: x - w * p, u, p, rates)
            else:
                expected = tree(lambda x, p, w: (1 - w) * (p + x) - p, u, p, rates)
            assert_close(updates, expected)
            assert_close(state, alone)


@pytest.mark.parametrize("add_to_loss", [True, False])
@pytest.mark.parametrize("rate", RATES, ids=["number", "tree"])
def test_l2_penalty_has_half_the_gradient_of_its_loss(rate, add_to_loss):
    rates = rate if isinstance(rate, dict) else dict.fromkeys(SHAPES, rate)
    kwargs = {"kind": "l2", "add_to_loss": add_to_loss}
    tx = bound(l2o.decay_weights(probe(), rate, **kwargs))
    for p, g, loss, updates, seen in steps(tx):
        gradient = tree(lambda g, p, w: g + w * p, g, p, rates)
        squares = sum(rates[k] * np.sum(np.square(p[k])) for k in SHAPES)
        assert_close(seen.gradient, gradient)
        np.testing.assert_allclose(seen.value, loss + add_to_loss * squares, rtol=1e-5)
        assert_close(updates, tree(lambda g: -RATE * g, gradient))
    # A loss that is not given stays so.
    _, seen = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    assert np.isnan(seen.value)
    fc, plain = bound(l2o.decay_weights(SMALL_FC, rate, **kwargs)), bound(SMALL_FC)
    updates, _ = fc.update(GRADS[0], fc.init(PARAMS), PARAMS)
    decayed = tree(lambda g, p, w: g + w * p, GRADS[0], PARAMS, rates)
    assert_close(updates, plain.update(decayed, plain.init(PARAMS), PARAMS)[0])


def test_l2_penalty_of_low_precision_is_not_lost():
    p = jnp.ones(2, jnp.bfloat16)
    tx = bound(l2o.decay_weights(probe(), 1e-3, kind="l2"))
    _, seen = tx.update(p, tx.init(p), p, value=0.0)
    np.testing.assert_allclose(seen.gradient, 1.001, rtol=1e-6)  # in bfloat16: 1


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="^unknown kind 'L2'; known: decoupled, after"):
        l2o.decay_weights(SMALL_FC, 0.1, kind="L2")
    with pytest.raises(ValueError, match="^unknown kind 'x'; known: sgd, .*adam_aggmo"):
        l2o.nominal(SMALL_FC, kind="x")


@pytest.mark.parametrize(
    ("kwargs", "bound_"), [({}, 3.0), ({"gradient_bound": 0.5}, 0.5)]
)
def test_clip_cuts_every_entry(kwargs, bound_):
    optimizer = l2o.clip_gradients(probe(("value",)), **kwargs)
    assert optimizer.needs == ("value",)
    grads = [tree(lambda x: 1.3 * bound_ * x, g) for g in GRADS[:2]]
    for _, g, loss, updates, seen in steps(bound(optimizer), grads=grads):
        cut = tree(lambda x: np.clip(x, -bound_, bound_), g)
        assert np.any(cut["w"] != g["w"]) and np.any(cut["w"] == g["w"])
        assert_close(seen.gradient, cut, rtol=0, atol=0)
        assert_close(updates, tree(lambda x: -RATE * x, cut))
        assert seen.value == loss


def norm(*arrays):
    return math.sqrt(sum(np.sum(np.square(np.float64(x))) for x in arrays))


@pytest.mark.parametrize("per_tensor", [False, True])
def test_grafted_has_one_norm_and_another_direction(per_tensor):
    parts = SMALL_FC, l2o.learnable_adam(learning_rate=0.1)
    optimizer = l2o.grafted(*parts, per_tensor=per_tensor)
    theta = optimizer.init_theta(KEY)
    assert set(theta) == {"direction", "magnitude"}
    expected = {
        "direction": jax.eval_shape(SMALL_FC.init_theta, KEY),
        "magnitude": jax.eval_shape(parts[1].init_theta, KEY),
    }
    assert jax.eval_shape(optimizer.init_theta, KEY) == expected
    alone = [
        part.bind(theta[name]) for part, name in zip(parts, ("direction", "magnitude"))
    ]
    states = [tx.init(PARAMS) for tx in alone]
    for p, g, _, updates, state in steps(optimizer.bind(theta)):
        pairs = [tx.update(g, s, p) for tx, s in zip(alone, states)]
        (u, v), states = zip(*pairs)
        whole = norm(*v.values()) / norm(*u.values())
        for k in SHAPES:
            ratio = norm(v[k]) / norm(u[k]) if per_tensor else whole
            np.testing.assert_allclose(updates[k], ratio * u[k], rtol=1e-5)
        assert_close((state.direction, state.magnitude), tuple(states))


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("rates", [(0.0, 0.1), (0.1, 0.0), (0.0, 0.0)])
def test_grafted_zero_gives_a_zero_step_and_a_finite_gradient(rates, per_tensor):
    parts = [probe(learning_rate=rate) for rate in rates]
    optimizer = l2o.grafted(*parts, per_tensor=per_tensor)

    def update(theta):
        tx = optimizer.bind(theta)
        return tx.update(GRADS[0], tx.init(PARAMS), PARAMS, value=1.0)[0]

    updates, pull_back = jax.vjp(update, optimizer.init_theta(KEY))
    assert_close(updates, optax.tree.zeros_like(PARAMS), rtol=0, atol=0)
    (gradient,) = pull_back(updates)
    assert np.all(np.isfinite(jax.tree.leaves(gradient)))
    nan = {**GRADS[0], "b": jnp.full(2, jnp.nan)}
    tx = bound(optimizer)
    assert not np.any(tx.update(nan, tx.init(PARAMS), PARAMS)[0]["b"])


DECAYS = {"momentum_decays": (0.5, 0.9), "rms_decay": 0.8}


def slow_nominal(kind, grads):
    m, r = np.zeros((2, *grads[0].shape)), 0
    d = np.array([0.5, 0.9]).reshape(2, *[1] * grads[0].ndim)
    for g in map(np.float64, grads):
        m, r = d * m + (1 - d) * g, 0.8 * r + 0.2 * g**2
        scale = 1 / np.sqrt(r + 1e-6)
        yield {
            "sgd": g,
            "sgdm": m[1],
            "aggmo": m.mean(0),
            "adam": m[1] * scale,
            "adam_aggmo": m.mean(0) * scale,
        }[kind]


@pytest.mark.parametrize("kind", ["sgd", "sgdm", "aggmo", "adam", "adam_aggmo"])
def test_nominal_term(kind):
    nothing = l2o.small_fc(hidden_size=2, hidden_layers=1, step_mult=0.0)
    for learned, shrinkage in ((nothing, 0.0), (SMALL_FC, 0.0), (nothing, 0.25)):
        optimizer = l2o.nominal(
            learned, kind=kind, step_size=0.05, decay_per_step=shrinkage, **DECAYS
        )
        theta = optimizer.init_theta(KEY)
        assert set(theta) == {"learned", "log_step_size"}
        plain = learned.bind(theta["learned"])
        alone = plain.init(PARAMS)
        slow = {k: slow_nominal(kind, [g[k] for g in GRADS]) for k in SHAPES}
        for p, g, _, updates, state in steps(optimizer.bind(theta), grads=GRADS[:3]):
            u, alone = plain.update(g, alone, p)
            for k in SHAPES:
                expected = u[k] - 0.05 * next(slow[k]) - shrinkage * p[k]
                np.testing.assert_allclose(updates[k], expected, rtol=2e-5, atol=1e-6)
            assert_close(state.inner, alone)


def test_meta_gradient_of_the_nominal_step_size():
    learned = l2o.learnable_sgd()
    optimizer = l2o.nominal(learned, kind="adam", step_size=0.05, **DECAYS)

    def last(theta):
        *_, (_, _, _, updates, _) = steps(optimizer.bind(theta), move=False)
        return updates

    theta = optimizer.init_theta(KEY)
    _, pull_back = jax.vjp(last, theta)
    gradient = pull_back(PARAMS)[0]["log_step_size"]
    # u = ... - exp(x) d, so that the gradient of sum(p u) is -exp(x) sum(p d).
    expected = 0.0
    for k, p in PARAMS.items():
        *_, d = slow_nominal("adam", [g[k] for g in GRADS[:2]])
        expected -= 0.05 * np.sum(p * d)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_float32_updates_round_once():
    # Just above half of what separates one from the next bfloat16.
    rate = 2**-8 * (1 + 2**-10)
    inner = l2o.learnable_sgd(learning_rate=rate)
    p, g = jnp.ones(2, jnp.bfloat16), -jnp.ones(2, jnp.bfloat16)
    ends = []
    for optimizer in (inner, l2o.float32_updates(inner)):
        tx = bound(optimizer)
        updates, _ = tx.update(g, tx.init(p), p)
        ends.append((updates.dtype, float(optax.apply_updates(p, updates)[0])))
    assert ends == [(jnp.bfloat16, 1.0), (jnp.float32, 1 + 2**-7)]
    wide = bound(l2o.float32_updates(SMALL_FC))
    updates, state = wide.update(g, wide.init(p), p)
    exact, _ = wide.update(
        g.astype(jnp.float32), wide.init(p.astype(jnp.float32)), p.astype(jnp.float32)
    )
    assert_close(updates, exact, rtol=1e-6, atol=0)
    assert {x.dtype.name for x in state.accumulators.momentum} == {"bfloat16"}


@pytest.mark.parametrize(
    "optimizer",
    [
        l2o.mup(probe(), 1 / 3),
        l2o.decay_weights(probe(), 1 / 3),
        l2o.decay_weights(probe(), 1 / 3, kind="after"),
        l2o.decay_weights(probe(), 1 / 3, kind="l2"),
        l2o.grafted(probe(), probe(learning_rate=0.03)),
        l2o.nominal(probe(), kind="sgd", step_size=0.3, decay_per_step=0.01),
        l2o.extend_horizon(probe(), 3),
    ],
    ids=["mup", "decoupled", "after", "l2", "grafted", "nominal", "extend_horizon"],
)
def test_low_precision_is_rounded_once(optimizer):
    low = jnp.linspace(1, 2, 65).astype(jnp.bfloat16)
    tx, ends = bound(optimizer, num_steps=5), []
    for g in (low, low.astype(jnp.float32)):
        *_, (_, _, _, updates, _) = steps(tx, g, [g, 2 * g], move=False)
        ends.append(updates.astype(jnp.bfloat16))
    assert_close(*ends, rtol=0, atol=0)


SAVED = {
    "weight_decay": (l2o.decay_weights(SMALL_FC, {"w": 0.1, "b": 0, "s": 1}), None),
    "extend_horizon": (l2o.extend_horizon(l2o.celo(lstm_hidden_size=4), 10), 20),
    "grafted": (l2o.grafted(SMALL_FC, l2o.learnable_adam(b1=0.5)), None),
    "nominal": (l2o.nominal(SMALL_FC, kind="aggmo", **DECAYS), None),
    "nested": (
        l2o.clip_gradients(
            l2o.nominal(l2o.decay_weights(SMALL_FC, 0.1, kind="after")), 0.5
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_wrapped_optimizers_are_saved_with_what_they_wrap(name, tmp_path):
    optimizer, num_steps = SAVED[name]
    theta = tree(lambda x: x + 0.01, optimizer.init_theta(KEY))
    folder = l2o.save(tmp_path / "saved", optimizer, theta)
    loaded, same = l2o.load_unbound(folder)
    assert_close(same, theta, rtol=0, atol=0)
    assert (loaded.name, loaded.arguments) == (optimizer.name, optimizer.arguments)
    assert (loaded.needs, loaded.frozen) == (optimizer.needs, optimizer.frozen)
    runs = [x.bind(theta, num_steps=num_steps) for x in (optimizer, loaded)]
    for (*_, u, _), (*_, v, _) in zip(*map(steps, runs)):
        assert_close(u, v, rtol=0, atol=0)


def test_frozen_parts_keep_their_place():
    phases = {
        phase: l2o.celo(lstm_hidden_size=3, train_phase=phase) for phase in (1, 2)
    }
    for inner in phases.values():
        for wrapped in (
            l2o.decay_weights(inner, 0.1),
            l2o.extend_horizon(inner),
            l2o.mup(inner, C),
        ):
            assert wrapped.frozen == inner.frozen
            assert wrapped.needs == ("params", "value", "num_steps")
    assert phases[2].frozen == ("bank",)
    assert l2o.nominal(phases[2]).frozen == ("learned/bank",)
    both = l2o.grafted(phases[2], l2o.nominal(phases[1]))
    schedule = [f"magnitude/learned/{k}" for k in phases[1].frozen]
    assert both.frozen == ("direction/bank", *schedule)
    theta = both.init_theta(KEY)
    for path in both.frozen:
        part = theta
        for key in path.split("/"):
            part = part[key]
