"""`learnable_muon` against a slow form, the rule it begins as, and optax's Muon."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import normal

import l2o
from l2o.rule._orthogonal import SCALE, SHIFTS, WEIGHTS

KEY = jax.random.key(0)
SHAPES = {
    **{"w": (3, 2), "kernel": (2, 2, 3, 4), "b": (2,), "s": (), "none": (0, 2)},
    **{"other": (3, 2), "more": (3, 2), "c": (2,)},  # which are stacked
}
PARAMS = normal(0, SHAPES)
GRADS = [normal(seed, SHAPES) for seed in range(1, 6)]
T = 20
# Nothing as it begins.
OTHER = {
    "exponent": 0.3,
    "horizon": 0.4,
    "log_decay": -2.0,
    "log_gradient": -0.7,
    "log_one_minus_b1": -1.5,
    "log_one_minus_b2": -2.5,
    "log_power": 0.4,
    "log_rate": 0.2,
    "log_vectors": -0.5,
    "log_warmup": -2.0,
    "plain": 0.3,
    "settle": 0.7,
}


OTHER_THETA = l2o.learnable_muon().init_theta(KEY)


def other(optimizer, drift):
    theta = optimizer.init_theta(KEY)
    assert theta["learned"].keys() == OTHER.keys()
    # Factors that gradients do not change: `hypergradient` has tests of its own.
    return {
        "learned": jax.tree.map(jnp.float32, OTHER),
        "log_gain": jnp.float32(-30.0),
        "drift": jnp.float32(drift),
        "fade": jnp.float32(0.0),
    }


def run(optimizer, theta, params=PARAMS, num_steps=T, gradients=GRADS):
    tx = optimizer.bind(theta, num_steps=num_steps)
    step = jax.jit(tx.update)
    state, found = tx.init(params), []
    for g in gradients:
        updates, state = step({k: g[k] for k in params}, state, params)
        found.append(updates)
        params = optax.apply_updates(params, updates)
    return found


def n(x):
    over = (-2, -1) if x.ndim > 1 else None
    return x / np.sqrt(np.mean(x * x, over, keepdims=True) + 1e-9)


def newton_schulz(x):
    x = x / np.sqrt(np.sum(x * x, (-2, -1), keepdims=True))
    for _ in range(5):
        gram = x @ x.swapaxes(-2, -1)
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def typical(params):
    """The size-weighted median of the matrices' root mean squares."""
    sizes = sorted(
        (np.sqrt(np.mean(x**2)), x.size) for x in params.values() if x.ndim > 1
    )
    repeated = [scale for scale, size in sizes for _ in range(size)]
    return repeated[(len(repeated) - 1) // 2]


def polar(x):
    """Zolotarev's function of the singular values."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    t = s / np.sum(s**4, -1, keepdims=True) ** 0.25
    f = t + sum(w * t / (t**2 + c) for w, c in zip(WEIGHTS, SHIFTS, strict=True))
    return (u * (SCALE * f)[..., None, :]) @ v


STRAIGHT = {"newton_schulz": newton_schulz, "rational": polar}


def settled(logs, size):
    """What is to be multiplied by the number `settle`."""
    logs.append(np.log(size))
    recent = logs[0]
    for t, log in enumerate(logs, 1):
        recent += max(0.1, 1 / t) * (log - recent)
    return min(recent - np.mean(logs) + 1, 0)


def slow(numbers, params, drift, straight, gradients):
    """Updates after every gradient, in float64."""
    number = {k: np.float64(np.float32(x)) for k, x in numbers.items()}
    b1, b2 = (1 - np.exp(number[f"log_one_minus_{x}"]) for x in ("b1", "b2"))
    warmup = np.exp(number["log_warmup"])
    p = {k: np.float64(x) for k, x in params.items()}
    limits = None
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    logs: dict[str, list] = {k: [] for k in p}
    for t, grads in enumerate(gradients):
        middle = typical(p) ** 2
        scales = {
            k: max(np.mean(x**2), 0.01 * middle) if x.ndim > 1 else middle
            for k, x in p.items()
        }
        if limits is None:
            fan_in = {k: x.size / x.shape[-1] for k, x in p.items() if x.ndim > 1}
            matrices = sum(p[k].size for k in fan_in)
            usual = sum(p[k].shape[-1] for k in fan_in) / matrices
            limits = {
                k: max(s, 1 / fan_in.get(k, 1 / usual)) for k, s in scales.items()
            }
        rise = (t + 1) / max(warmup * T, 1)
        after = max((t / T - warmup) / (1 - warmup), 0)
        fall = (0.5 + 0.5 * math.cos(math.pi * after)) ** np.exp(number["log_power"])
        rate = 0.03 * np.exp(number["log_rate"]) * (T / 1000) ** number["horizon"]
        rate *= min(rise, fall)
        updates = {}
        for k, x in p.items():
            g = np.float64(grads[k])
            m[k] = b1 * m[k] + (1 - b1) * g
            v[k] = b2 * v[k] + (1 - b2) * g**2
            root = (v[k] + 1e-8) ** -number["exponent"]
            z = n(m[k] * root) + np.exp(number["log_gradient"]) * n(g * root)
            if x.ndim > 1:
                d = n(n(straight(z)) + number["plain"] * n(z))
            else:
                d = np.exp(number["log_vectors"]) * n(z)
            scale = np.sqrt(min(scales[k], limits[k]))
            scale *= np.exp(drift * (t + 1) / T)
            scale *= np.exp(number["settle"] * settled(logs[k], np.mean(np.abs(g))))
            updates[k] = -rate * (scale * d + np.exp(number["log_decay"]) * x)
            p[k] = x + updates[k]
        yield updates


@pytest.mark.parametrize("orthogonal", STRAIGHT)
@pytest.mark.parametrize("drift", [0.0, 3.0])
def test_equals_its_slow_form(drift, orthogonal):
    some = {k: PARAMS[k] for k in SHAPES if k != "none"}
    optimizer = l2o.learnable_muon(
        axes="last_two", orthogonal=orthogonal, state_bytes=10
    )
    # Enough of them, and falling fast enough, that steps become shorter.
    gradients = [
        jax.tree.map(lambda g, t=t: np.float32(g * 16.0**-t), normal(t, SHAPES))
        for t in range(1, 15)
    ]
    for found, expected in zip(
        run(optimizer, other(optimizer, drift), some, gradients=gradients),
        slow(OTHER, some, drift, STRAIGHT[orthogonal], gradients),
        strict=True,
    ):
        for k, value in expected.items():
            # What is rounded of small directions is enlarged.
            atol = 1e-4 * np.max(np.abs(value))
            np.testing.assert_allclose(found[k], value, rtol=1e-4, atol=atol, err_msg=k)


def test_begins_as_the_orthogonal_rule_in_its_wrapper():
    rule = l2o.celo2_base(
        init="nadam",
        relative=True,
        schedule="cosine",
        learning_rate=0.03,
        orthogonalize=True,
    )
    # The wrapper would multiply a decay too.
    ours = l2o.learnable_muon(
        weight_decay=0.0, axes="last_two", orthogonal="newton_schulz", state_bytes=10
    )
    theirs = l2o.hypergradient(rule)
    pairs = zip(
        run(ours, ours.init_theta(KEY)),
        run(theirs, theirs.init_theta(KEY)),
        strict=True,
    )
    for found, expected in pairs:
        # Of a scalar m and g are but signs, of whose sum rounding may be left.
        for k in SHAPES.keys() - {"s"}:
            np.testing.assert_allclose(
                found[k], expected[k], rtol=2e-3, atol=1e-5, err_msg=k
            )


def test_without_preconditioning_it_goes_where_muon_goes():
    optimizer = l2o.learnable_muon(
        exponent=0.0, orthogonal="newton_schulz", state_bytes=10
    )
    theta = optimizer.init_theta(KEY)
    # The momentum alone.
    theta["learned"]["log_gradient"] = jnp.float32(-30.0)
    theta["learned"]["log_decay"] = jnp.float32(-30.0)
    muon = optax.contrib.muon(1.0, beta=0.9, nesterov=False)
    params = {"w": jnp.asarray(PARAMS["w"])}
    state = muon.init(params)
    for g, ours in zip(GRADS, run(optimizer, theta, params), strict=True):
        theirs, state = muon.update({"w": jnp.asarray(g["w"])}, state, params)
        a, b = np.ravel(ours["w"]), np.ravel(theirs["w"])
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(cosine, 1.0, atol=1e-4)


@pytest.mark.parametrize("horizon", [0.0, 0.5])
def test_the_rate_depends_on_the_length_of_the_run_as_theta_says(horizon):
    optimizer = l2o.learnable_muon()
    theta = optimizer.init_theta(KEY)
    theta["learned"]["horizon"] = jnp.float32(horizon)
    # One step that is the whole warm-up, so that only the rate differs.
    theta["learned"]["log_warmup"] = jnp.float32(-30.0)
    theta["drift"] = jnp.float32(0.0)
    params = {"b": PARAMS["b"]}
    short, usual = (run(optimizer, theta, params, steps)[0] for steps in (250, 1000))
    np.testing.assert_allclose(short["b"], 0.25**horizon * usual["b"], rtol=1e-5)


def test_a_factor_of_the_updates_is_a_factor_of_the_rate():
    ours, other = (l2o.learnable_muon(learning_rate=x) for x in (0.03, 0.06))
    theta = ours.init_theta(KEY)
    twice = l2o.LearnedOptimizer(
        ours.init_theta,
        lambda theta, num_steps: optax.chain(
            ours.bind(theta, num_steps=num_steps), optax.scale(2.0)
        ),
    )
    for a, b in zip(run(twice, theta), run(other, theta), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_rows_without_gradients_decay_and_do_not_count():
    optimizer = l2o.learnable_muon()
    tx = optimizer.bind(optimizer.init_theta(KEY), num_steps=T)
    params = {"w": jnp.ones((8, 3))}
    grads = {"w": GRADS[0]["kernel"][0, 0].T[:, :3]}  # (4, 3)
    part, _ = tx.update(
        {"w": jnp.zeros((8, 3)).at[:4].set(grads["w"])}, tx.init(params), params
    )
    rate = 0.03  # a warm-up of one step
    np.testing.assert_allclose(part["w"][4:], -rate * 0.06, rtol=1e-6)
    steps = part["w"][:4] + rate * 0.06
    # e^(drift / T), and a scale of one: unit root mean square over the rows used.
    size = np.sqrt(np.mean(np.square(steps)))
    np.testing.assert_allclose(size, rate * math.exp(1 / T) * limit(8), rtol=1e-3)


def limit(fan_in):
    """The scale of a matrix of ones: no more than it was."""
    return max(1.0, 1 / math.sqrt(fan_in))


@pytest.mark.parametrize("state_bytes", [10, 8, 6])
def test_state_has_the_bytes_that_are_asked_for(state_bytes):
    optimizer = l2o.learnable_muon(state_bytes=state_bytes)
    tx = optimizer.bind(optimizer.init_theta(KEY), num_steps=T)
    p = jnp.zeros((64, 64), jnp.float32)
    state = jax.eval_shape(tx.init, p)
    found = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert 0 <= found - state_bytes * p.size < 64  # counts, and numbers of the tensor


def test_the_second_moment_of_a_table_stays_in_float32():
    tx = l2o.learnable_muon(state_bytes=6).bind(OTHER_THETA, num_steps=T)
    params = {"embed": {"embedding": jnp.ones((5, 4))}, "w": jnp.ones((4, 4))}
    second = jax.eval_shape(tx.init, {"none": jnp.ones((0, 2)), **params}).second
    assert second["embed"]["embedding"].dtype == jnp.float32
    assert second["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("state_bytes", [8, 6])
def test_less_state_moves_about_the_same_way(state_bytes):
    exact, short = (l2o.learnable_muon(state_bytes=x) for x in (10, state_bytes))
    theta = exact.init_theta(KEY)
    matrix = {"kernel": PARAMS["kernel"]}
    pairs = list(zip(run(short, theta, matrix), run(exact, theta, matrix), strict=True))
    for found, expected in pairs:
        a, b = (np.ravel(x["kernel"]) for x in (found, expected))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.995
    assert np.any(pairs[-1][0]["kernel"] != pairs[-1][1]["kernel"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, "b1 to be a finite number from 0 to less than 1"),
        ({"b2": -0.1}, "b2 to be a finite number from 0 to less than 1"),
        ({"weight_decay": -0.1}, "weight_decay to be a finite number >= 0"),
        ({"gain": 0.0}, "gain to be a finite number > 0"),
        ({"factor_bound": 0.5}, "factor_bound to be at least 1"),
        ({"orthogonal": "svd"}, "unknown orthogonal of learnable_muon"),
        ({"state_bytes": 4}, "state_bytes to be 10, 8 or 6"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        l2o.learnable_muon(**options)
