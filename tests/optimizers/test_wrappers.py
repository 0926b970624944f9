"""Every wrapper, and muP scaling, against closed forms."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, normal
from jax import lax

import l2o

KEY = jax.random.key(0)
SHAPES = {"w": (3, 2), "b": (2,), "s": ()}
PARAMS = normal(0, SHAPES)
GRADS = [normal(seed, SHAPES) for seed in range(1, 8)]
LOSSES = [0.5, 3.0, 0.25, 1.5, -0.75, 2.0, 4.0]
SMALL_FC = l2o.small_fc(step_mult=0.1)
RATE = 0.1


class Seen(NamedTuple):
    """The state of `probe`: what it was given last."""

    gradient: Any
    value: jax.Array
    calls: jax.Array
    num_steps: jax.Array


def probe(needs=("params",), learning_rate=RATE):
    """SGD that remembers what it was given; a loss that was not is NaN."""

    def bind(theta, *, num_steps=None):
        def init(params):
            n = jnp.float32(jnp.nan if num_steps is None else num_steps)
            zeros = optax.tree.zeros_like(params, dtype=jnp.float32)
            return Seen(zeros, jnp.float32(0), jnp.int32(0), n)

        def update(updates, state, params=None, *, value=None, **extra_args):
            value = jnp.float32(jnp.nan if value is None else value)
            seen = Seen(updates, value, state.calls + 1, state.num_steps)
            return optax.tree.scale(-theta["rate"], updates), seen

        return l2o.transformation(init, update)

    return l2o.LearnedOptimizer(
        lambda key: {"rate": jnp.float32(learning_rate)}, bind, needs=needs
    )


def bound(optimizer, **kwargs):
    return optimizer.bind(optimizer.init_theta(KEY), **kwargs)


def steps(tx, params=PARAMS, grads=GRADS[:2], losses=LOSSES, move=True):
    """Yields parameters before the step, gradients, loss, updates and the new state."""
    state = tx.init(params)
    for g, loss in zip(grads, losses):
        updates, state = tx.update(g, state, params, value=loss)
        yield params, g, loss, updates, state
        params = optax.apply_updates(params, updates) if move else params


def tree(f, *trees):
    return jax.tree.map(f, *trees)


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


def test_extend_horizon_survives_what_is_not_finite():
    tx = bound(l2o.extend_horizon(probe(), 10), num_steps=20)
    grads = [GRADS[0], tree(lambda g: g * jnp.nan, GRADS[1]), *GRADS[2:4]]
    *_, (_, _, _, _, state) = steps(tx, grads=grads, losses=[1, np.inf, 2, 3], move=0)
    assert_close(state.inner.gradient, tree(lambda x, y: (x + y) / 2, *GRADS[2:4]))
    assert state.inner.value == 2.5


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


C = {"w": 0.25, "b": 1.0, "s": 3.0}


@pytest.mark.parametrize(
    "multipliers", [C, lambda p: {k: jnp.float32(C[k]) for k in p}], ids=["tree", "fn"]
)
def test_mup_multiplies_the_steps(multipliers):
    optimizer = l2o.mup(SMALL_FC, multipliers)
    assert (optimizer.name, optimizer.needs) == ("", ("params",))
    plain = bound(SMALL_FC)
    alone = plain.init(PARAMS)
    for p, g, _, updates, state in steps(bound(optimizer)):
        u, alone = plain.update(g, alone, p)
        assert_close(updates, {k: C[k] * u[k] for k in SHAPES})
        assert_close(state, alone)
    low = optax.tree.cast(PARAMS, jnp.bfloat16)
    tx = bound(optimizer)
    updates, _ = tx.update(low, tx.init(low), low)
    assert {x.dtype.name for x in updates.values()} == {"bfloat16"}


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


def test_mup_refuses_another_structure():
    tx = bound(l2o.mup(SMALL_FC, {"w": 1.0, "b": 1.0}))
    remedy = r"mup needs one multiplier per parameter: .*'b'.*'w'.*, the parameters .*s"
    with pytest.raises(ValueError, match=remedy):
        tx.update(GRADS[0], tx.init(PARAMS), PARAMS)


def test_mup_multipliers_follow_the_shapes():
    def model(n):
        shapes = {
            "embedding": (100, n),
            "dense": (n, 4 * n),
            "conv": (3, 3, n, 2 * n),
            "first_conv": (3, 3, 3, n),
            "heads": (n, n // 4, 4),
            "readout": (n, 10),
            "bias": (n,),
            "scale": (),
        }
        return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    hidden = ("dense", "conv", "heads")
    expected = {k: 0.25 if k in hidden else 1.0 for k in model(64)}
    assert l2o.mup_multipliers(model(64), model(16)) == expected
    doubled = {k: 0.5 if k in hidden else 1.0 for k in model(64)}
    assert l2o.mup_multipliers(model(64), model(16), hidden_lr_mult=2.0) == doubled
    assert set(l2o.mup_multipliers(model(16), model(16)).values()) == {1.0}
    one = jax.ShapeDtypeStruct((3, 1, 1), jnp.float32)
    assert l2o.mup_multipliers(np.ones((3, 5, 7)), one) == 1 / 5
    three = {"a": [np.ones((2, 3, 4))]}
    with pytest.raises(ValueError, match=r"\['a'\]\[0\] grew along 3 axes, muP knows"):
        l2o.mup_multipliers(three, {"a": [np.ones((1, 1, 1))]})
    with pytest.raises(
        ValueError, match=r"\['a'\]\[0\] has shape \(2, 3, 4\) and base"
    ):
        l2o.mup_multipliers(three, {"a": [np.ones((2, 3))]})


def hidden_change(width, scaled):
    """How far three steps of mulo move the second hidden layer, per coordinate."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 8)), rng.standard_normal((16, 1))
    shapes = {"in": (8, width), "mid": (width, width), "out": (width, 1)}
    # The readout starts at zero and its output is divided by the width.
    start = {
        k: jnp.float32((k != "out") * rng.standard_normal(s) / math.sqrt(s[0]))
        for k, s in shapes.items()
    }

    def hidden(p):
        return jax.nn.relu(x @ p["in"]) @ p["mid"]

    def loss(p):
        return jnp.mean((jax.nn.relu(hidden(p)) @ p["out"] / width - y) ** 2)

    multipliers = {"in": 1.0, "mid": 1 / width, "out": 1.0}
    optimizer = l2o.mup(l2o.mulo(), multipliers) if scaled else l2o.mulo()
    theta = optimizer.init_theta(jax.random.key(3))
    tx = optimizer.bind(theta)
    params, state = start, tx.init(start)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    # Of the middle matrix alone: that of the first layer is the same for every width.
    moved = {**start, "mid": params["mid"]}
    return float(jnp.sqrt(jnp.mean((hidden(moved) - hidden(start)) ** 2)))


def test_mup_makes_the_change_of_activations_independent_of_width():
    narrow, wide = (hidden_change(n, scaled=True) for n in (16, 128))
    assert 0.6 < wide / narrow < 1.6
    narrow, wide = (hidden_change(n, scaled=False) for n in (16, 128))
    assert wide / narrow > 4


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


def test_mup_is_loaded_with_its_architecture(tmp_path):
    optimizer = l2o.grafted(l2o.mup(SMALL_FC, C), l2o.learnable_sgd())
    theta = optimizer.init_theta(KEY)
    folder = l2o.save(tmp_path / "saved", optimizer, theta)
    with pytest.raises(ValueError, match="give its architecture, `l2o.load"):
        l2o.load(folder)
    tx = l2o.load(folder, optimizer=optimizer)
    for (*_, u, _), (*_, v, _) in zip(steps(tx), steps(optimizer.bind(theta))):
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


def test_mup_refuses_what_is_no_number():
    with pytest.raises(ValueError, match=r"multipliers\['w'\] to be a finite number"):
        l2o.mup(l2o.mulo(), {"w": lambda param: 1.0})
