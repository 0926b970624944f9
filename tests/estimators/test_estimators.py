"""Every estimator's mean against an exact gradient, and the bookkeeping it rests on."""

import functools
import itertools
import math

import closed_forms as cf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import few

import l2o
from l2o import meta_train as mt
from l2o.meta_train import Objective, constant, learn_optimizer, log_uniform
from l2o.tasks import TaskFamily, make_family, stateless

THETA, STD = jnp.float32(cf.THETA), cf.STD


def test_the_closed_forms_agree_with_published_numbers():
    # facts: d/dtheta of the single loss L_t at these constants, t = 1, 2, 3.
    for form, expected in (
        (cf.exact, [-1.978061, -0.648903, -0.159654]),
        (cf.full, [-1.978061, -2.020886, -2.474361]),
        (lambda t: cf.persistent(t, 1), [-1.978061, -1.106230, -0.463994]),
        (lambda t: cf.persistent(t, 2), [-1.978061, -2.020886, -0.922648, -0.730599]),
    ):
        values = [form(t + 1) for t in range(len(expected))]
        np.testing.assert_allclose(values, expected, atol=2e-6)


# Estimator, keyword arguments, the mean for the loss after t steps given the window.
# Those of full unrolls take no truncation; a window of theirs is an episode.
ESTIMATORS = {
    "pes": (mt.pes, {"std": STD}, cf.persistent),
    "nres": (mt.nres, {"std": STD}, lambda t, k: cf.full(t) if t else 0.0),
    "gpes": (
        lambda *args, truncation, **kwargs: mt.gpes(
            *args, truncation=truncation, period=2 * truncation, **kwargs
        ),
        {"std": STD},
        lambda t, k: cf.persistent(t, 2 * k),
    ),
    "truncated_es": (mt.truncated_es, {"std": STD}, cf.truncated),
    "truncated_es_unperturbed": (
        functools.partial(mt.truncated_es, carry="unperturbed"),
        {"std": STD},
        cf.truncated_unperturbed,
    ),
    "full_es": (mt.full_es, {"std": STD}, lambda t, k: cf.full(t) if t else 0.0),
    "backprop": (mt.backprop, {}, lambda t, k: cf.exact(t) if t else 0.0),
    "truncated_backprop": (mt.truncated_backprop, {}, cf.truncated_exact),
    "forward_gradient": (
        mt.forward_gradient,
        {},
        lambda t, k: cf.exact(t) if t else 0.0,
    ),
    "inverse_variance": (mt.inverse_variance, {"std": STD}, cf.truncated),
}
FULL = ("full_es", "backprop")
WINDOWED = [name for name in ESTIMATORS if name not in FULL]
UNBIASED = ("pes", "nres", "gpes", "full_es", "backprop", "forward_gradient")
# One of each kind of code, where the formula does not matter.
KINDS = (
    "pes",
    "full_es",
    "truncated_backprop",
    "forward_gradient",
    "inverse_variance",
)
DETERMINISTIC = ("backprop", "truncated_backprop")  # on a problem without noise


def _make(name, problem, schedule, *, truncation, **kwargs):
    make, given, _ = ESTIMATORS[name]
    if name not in FULL:
        kwargs["truncation"] = truncation
    return make(problem, schedule, **{**given, **kwargs})


def _episode_sums(name, truncation, length, *, particles=4000, repeats=25):
    """Sum of the gradients of one episode's losses, for successive episodes."""
    truncation = length if name in FULL else truncation
    estimator = _make(
        name,
        cf.problem(),
        constant(length),
        truncation=truncation,
        particles=particles,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), THETA)
    sums = []
    for repeat in range(repeats):
        total = 0.0
        for window in range(-(-length // truncation)):
            key = jax.random.fold_in(jax.random.key(repeat), window)
            gradient, state, _ = estimate(key, THETA, state, ())
            total += float(gradient) * truncation
        sums.append(total)
    return np.array(sums)


# Windows that divide the episode, that do not (the last one is cut), one window, and
# repeats that go on from the state of the last: every episode starts with a reset.
# Those that are left to exhaustive runs, too.
# `test_a_mean_in_which_later_steps_count_more` has windows that divide the episode,
# `test_one_window_per_episode_makes_them_equal` has one.
CUTS = {(1, 4): True, (2, 4): True, (2, 5): False, (3, 4): True, (4, 4): True}


@pytest.mark.parametrize(
    "name, truncation, length",
    [
        pytest.param(name, *cut, marks=[pytest.mark.exhaustive] if more else [])
        for name in WINDOWED
        for cut, more in CUTS.items()
    ]
    + [(name, 5, 5) for name in FULL],
)
def test_mean_is_the_exact_gradient(name, truncation, length):
    form = ESTIMATORS[name][2]
    expected = sum(form(t, truncation) for t in range(length))
    if name in DETERMINISTIC:
        sums = _episode_sums(name, truncation, length, particles=2, repeats=3)
        np.testing.assert_allclose(sums, expected, rtol=1e-5)
        error = 1e-4
    else:
        sums = _episode_sums(name, truncation, length)
        error = sums.std(ddof=1) / math.sqrt(len(sums))
        assert abs(sums.mean() - expected) <= 4 * error
    # The test can tell the biased ones from the unbiased ones: both closed forms are
    # there, and only one of them fits.
    other = cf.persistent if name not in UNBIASED else cf.truncated
    wrong = sum(other(t, truncation) for t in range(length))
    if 1 < truncation < length:
        assert abs(sums.mean() - wrong) > 4 * error


@pytest.mark.parametrize(
    "name",
    # The combination has no closed form; it resets as its parts do.
    few(WINDOWED, set(WINDOWED) - {"inverse_variance", "truncated_es_unperturbed"}),
)
def test_mean_over_desynchronised_particles(name):
    # With uniformly drawn phases each call sees all windows of an episode at once, and
    # some particle restarts in every call.
    truncation, length = 2, 6
    estimator = _make(
        name,
        cf.problem(),
        constant(length),
        truncation=truncation,
        particles=6000,
        max_offset=length,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(1), THETA)
    gradients, ended = [], []
    for i in range(63):
        gradient, state, info = estimate(jax.random.key(100 + i), THETA, state, ())
        gradients.append(float(gradient))
        ended.append(int(info.episodes))
    windows = length // truncation
    # After the shortened first episodes; whole episodes only: 20 of them.
    per_episode = np.array(gradients[windows:]).reshape(-1, windows).mean(1)
    error = per_episode.std(ddof=1) / math.sqrt(len(per_episode)) + 1e-6
    form = ESTIMATORS[name][2]
    if name == "inverse_variance":
        # Weights that mix windows with and without signal, by their pooled variances:
        # no closed form, but it must not be the mean of an unbiased one.
        form, biased = cf.persistent, True
    else:
        biased = False
    exact = sum(form(t, truncation) for t in range(length)) / length
    assert (abs(per_episode.mean() - exact) < 4 * error) != biased
    assert min(ended) > 0


@pytest.mark.parametrize("name", ["backprop", "forward_gradient"])
def test_mean_over_factors_of_the_rate(name):
    # One factor per episode: two windows of forward gradients share it.
    low, high, length, truncation = 0.2, 3.0, 4, 2
    factors = np.exp(np.linspace(np.log(low), np.log(high), 10_001))
    ratio = 1 - cf.A * cf.THETA * factors
    slopes = sum(
        -2 * t * cf.C * cf.A * factors * ratio ** (2 * t - 1) for t in range(length)
    )
    estimator = _make(
        name,
        learn_optimizer(cf.sgd(), cf.parabola(), (low, high)),
        constant(length),
        truncation=truncation,
        particles=4000,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), THETA)
    windows = 1 if name in FULL else length // truncation
    sums = []
    for repeat in range(20):
        total = 0.0
        for window in range(windows):
            key = jax.random.fold_in(jax.random.key(repeat), window)
            gradient, state, _ = estimate(key, THETA, state, ())
            total += float(gradient) * length / windows
        sums.append(total)
    error = np.std(sums, ddof=1) / math.sqrt(len(sums))
    assert abs(np.mean(sums) - slopes.mean()) <= 4 * error
    # It is neither that of the middle nor that of factors drawn evenly.
    middle = slopes[len(slopes) // 2]
    evenly = np.average(slopes, weights=factors)
    assert min(abs(np.mean(sums) - x) for x in (middle, evenly)) > 4 * error


def test_a_range_of_rates_is_positive():
    with pytest.raises(ValueError, match="rate_range must be 0 < low <= high"):
        learn_optimizer(cf.sgd(), cf.parabola(), (0.0, 1.0))


def _momentum():
    """SGD with momentum on noisy, sampled quadratics: two meta-parameters."""

    def bind(theta, *, num_steps=None):
        return optax.with_extra_args_support(
            optax.sgd(theta[0] / 10, momentum=theta[1])
        )

    optimizer = l2o.LearnedOptimizer(lambda key: jnp.array([0.5, 0.5]), bind)

    def task(curvature, data):
        return stateless(
            init=lambda key: jnp.array([1.0, -1.0]),
            batch=lambda key, split: 0.1 * jax.random.normal(key, (2,)),
            loss=lambda x, key, batch: jnp.sum(curvature * (x + batch) ** 2) / 2,
        )

    def sample(key):
        return jnp.array([1.0, 3.0]) * jax.random.uniform(key, (2,), minval=0.5)

    return learn_optimizer(optimizer, TaskFamily(sample, task))


@functools.cache
def _slopes(length):
    """Of the mean over many tasks of the loss of `_momentum`, by differences."""
    problem = _momentum()
    theta = problem.init_theta(jax.random.key(0))

    @jax.jit
    def meta_loss(theta):
        # std / 1e9: both runs of a pair at theta itself.
        still = mt.full_es(problem, constant(length), particles=20_000, std=1e-9)
        return still.estimate(jax.random.key(5), theta, (), ())[2].meta_loss

    h = 1e-2
    return [
        (meta_loss(theta + h * e) - meta_loss(theta - h * e)) / (2 * h)
        for e in jnp.eye(2)
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive)
        if name in ("nres", "gpes", "full_es")
        else name
        for name in UNBIASED
    ],
)
def test_vector_theta_agrees_with_finite_differences(name):
    # Small perturbations: the smoothed gradient is the gradient, taken here by central
    # differences of full unrolls over many tasks.
    problem, length, truncation = _momentum(), 6, 2
    theta, exact = problem.init_theta(jax.random.key(0)), _slopes(length)
    given = {"std": 2e-3} if "std" in ESTIMATORS[name][1] else {}
    estimator = _make(
        name,
        problem,
        constant(length),
        truncation=truncation,
        particles=4_000,
        **given,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), theta)
    windows = 1 if name in FULL else length // truncation
    means = []
    for i in range(25):
        gradients = []
        for w in range(windows):
            key = jax.random.fold_in(jax.random.key(i), w)
            gradient, state, _ = estimate(key, theta, state, ())
            gradients.append(gradient)
        means.append(np.mean(gradients, 0))
    error = np.std(means, 0, ddof=1) / math.sqrt(len(means))
    # The oracle has 20 000 tasks itself: 4 of its errors are about 1 % here.
    slack = 1e-2 * np.abs(exact)
    assert np.all(np.abs(np.mean(means, 0) - exact) < 4 * error + slack)
    assert np.all(np.abs(exact) > 10 * error)  # sharp enough to be wrong


# --- what every estimator must be, on a noisy quadratic with learnable Adam


LENGTH = 4


@pytest.fixture(scope="module")
def small():
    """The problem, its task and a theta."""
    optimizer = l2o.learnable_adam(learning_rate=0.05)
    task = stateless(
        init=lambda key: jax.random.normal(key, (3,)),
        batch=lambda key, split: 0.1 * jax.random.normal(key, (3,)),
        loss=lambda x, key, noise: jnp.sum((x - noise) ** 2),
    )
    family = TaskFamily(lambda key: (), lambda config, data: task)
    problem = learn_optimizer(optimizer, family)
    return problem, task, problem.init_theta(jax.random.key(0))


@pytest.fixture(scope="module", params=ESTIMATORS)
def made(request, small):
    """(name, estimator, compiled estimate), episodes of two windows."""
    problem, _, _ = small
    given = {"std": 0.05} if "std" in ESTIMATORS[request.param][1] else {}
    schedule = log_uniform(5, 9)
    estimator = _make(
        request.param, problem, schedule, truncation=LENGTH, particles=3, **given
    )
    return request.param, estimator, jax.jit(estimator.estimate)


def test_jit_changes_nothing_and_compiles_once(made, small):
    name, estimator, compiled = made
    theta = small[2]
    state = estimator.init(jax.random.key(0), theta)
    for i in range(3):
        key, before = jax.random.key(i), state
        gradient, state, info = compiled(key, theta, before, (), i)
        # A second window: the first and third begin with a reset.
        # Of the combination and of full unrolls the others have the parts.
        if i != 1 or name not in ("pes", "truncated_backprop", "forward_gradient"):
            continue
        plain, _, plain_info = estimator.estimate(key, theta, before, (), i)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain)):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(info.meta_loss, plain_info.meta_loss, rtol=1e-5)
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, theta)
    assert compiled._cache_size() == 1
    assert int(info.particles) == 3 and int(info.nonfinite) == 0


def test_state_keeps_its_types_and_info_counts(made, small):
    name, estimator, compiled = made
    theta = small[2]
    state = estimator.init(jax.random.key(0), theta)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    steps = episodes = 0
    for i in range(4):
        _, state, info = compiled(jax.random.key(i), theta, state, (), i)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == types
        steps, episodes = steps + int(info.inner_steps), episodes + int(info.episodes)
    # Episodes of 5 to 8 steps: two windows of 4, or one call of a full unroll.
    signs = {"truncated_es_unperturbed": 3, "backprop": 1, "truncated_backprop": 1}
    signs = signs.get(name, 1 if name == "forward_gradient" else 2)
    assert episodes == (12 if name in FULL else 6)
    assert 5 * signs * episodes <= steps <= 8 * signs * episodes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_hand(problem, task, noise, theta, config_keys):
    """J at theta + noise, J at theta - noise and both gradients, one run at a time."""
    k_init, k_steps = config_keys

    def objective(theta):
        tx, _ = problem.inner(theta, (), (), LENGTH)
        inner = mt.inner_init(tx, task, k_init)
        losses = []
        for t in range(LENGTH):
            inner, loss, _ = mt.inner_step(
                tx, task, inner, jax.random.fold_in(k_steps, t)
            )
            losses.append(loss)
        return jnp.mean(jnp.stack(losses))

    plus = jax.tree.map(jnp.add, theta, noise)
    minus = jax.tree.map(jnp.subtract, theta, noise)
    return [jax.value_and_grad(objective)(x) for x in (plus, minus)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_vectorised_equals_looped_in_the_first_window(name, small):
    # K = horizon: every estimator's first window is a full unroll, made here run by run
    # with the same keys; the runs of a pair share them.
    problem, task, theta = small
    n, std = 3, 0.05
    given = {"std": std} if "std" in ESTIMATORS[name][1] else {}
    estimator = _make(
        name, problem, constant(LENGTH), truncation=LENGTH, particles=n, **given
    )
    state = estimator.init(jax.random.key(0), theta)
    key = jax.random.key(3)
    gradient, _, info = jax.jit(estimator.estimate)(key, theta, state, ())

    # As the estimators draw: a key for the noise, one for the runs.
    k_noise, k_runs = (None, key) if "backprop" in name else jax.random.split(key)
    scale = 1.0 if name == "forward_gradient" else given.get("std", 0.0)
    zeros = jax.tree.map(jnp.zeros_like, theta)
    es, slopes, forward, total = [], [], [], []
    for i, k in enumerate(jax.random.split(k_runs, n)):
        _, _, k_init, k_steps = jax.random.split(k, 4)
        noise = zeros
        if scale:
            k_i = jax.random.split(k_noise, n)[i]
            noise = optax.tree.scale(scale, optax.tree.random_like(k_i, theta))
        at = zeros if name == "forward_gradient" else noise
        (plus, up), (minus, down) = _by_hand(
            problem, task, at, theta, (k_init, k_steps)
        )
        total += [plus, minus]
        slopes.append(jax.tree.map(lambda a, b: (a + b) / 2, up, down))
        es.append(optax.tree.scale((plus - minus) / (2 * std**2), noise))
        forward.append(optax.tree.scale(optax.tree.vdot(up, noise), noise))
    chosen = {
        "backprop": slopes,
        "truncated_backprop": slopes,
        "forward_gradient": forward,
    }
    stacked = jax.tree.map(lambda *x: np.stack(x), *chosen.get(name, es))
    expected = jax.tree.map(lambda x: x.mean(0), stacked)
    if name == "inverse_variance":
        slopes = jax.tree.map(lambda *x: np.stack(x), *slopes)

        def combine(e, r):
            v_e, v_r = (x.var(0, ddof=1) + 1e-8 for x in (e, r))
            return (e.mean(0) / v_e + r.mean(0) / v_r) / (1 / v_e + 1 / v_r)

        expected = jax.tree.map(combine, stacked, slopes)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=2e-4)
    if name != "truncated_es_unperturbed":  # whose third runs are reported too
        np.testing.assert_allclose(info.meta_loss, np.mean(total), rtol=1e-5)


def test_one_window_per_episode_makes_them_equal():
    # The same keys, so the same pairs: PES, NRES, GPES, truncated ES and full ES.
    problem = _momentum()
    theta = problem.init_theta(jax.random.key(0))
    results = []
    for name in ("pes", "nres", "gpes", "truncated_es", "full_es"):
        estimator = _make(
            name, problem, constant(5), truncation=5, particles=4, std=0.01
        )
        estimate = jax.jit(estimator.estimate)
        state = estimator.init(jax.random.key(0), theta)
        for i in range(2):  # a reset between them
            gradient, state, _ = estimate(jax.random.key(i), theta, state, ())
        results.append(gradient)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["pes", "nres", "gpes"])
def test_accumulator_is_the_sum_of_perturbations_since_the_last_reset(name, small):
    problem, _, theta = small
    estimator = _make(
        name, problem, log_uniform(5, 21), truncation=4, particles=3, std=0.05
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), theta)
    resets = kept = 0
    for i in range(20):
        started = np.asarray(state.runs.step >= state.runs.length)
        step = np.where(started, 0, state.runs.step)
        before = state.accumulator
        _, state, _ = estimate(jax.random.key(i), theta, state, ())
        fresh = estimator.init(jax.random.key(0), theta)
        _, fresh, _ = estimate(jax.random.key(i), theta, fresh, ())
        # A state of which all pairs restart has just this window's draw.
        drawn = {"pes": True, "nres": started, "gpes": started | (step % 8 == 0)}
        drawn = np.broadcast_to(drawn[name], 3)
        for a, b, noise in zip(
            jax.tree.leaves(state.accumulator),
            jax.tree.leaves(before),
            jax.tree.leaves(fresh.accumulator),
        ):
            expected = np.where(started, 0, b) + np.where(drawn, noise, 0)
            np.testing.assert_allclose(a, expected, rtol=1e-6, atol=1e-7)
        resets, kept = resets + started.sum(), kept + (~drawn).sum()
    assert 3 < resets < 60  # both cases were seen
    assert (kept > 5) == (name != "pes")


@pytest.mark.exhaustive
def test_gpes_uses_the_perturbation_it_keeps(small):
    # Both runs of a pair are where an uncut run with the kept noise would be.
    problem, task, theta = small
    estimator = mt.gpes(
        problem, constant(16), period=8, particles=2, truncation=4, std=0.05
    )
    state = estimator.init(jax.random.key(0), theta)
    for i in range(2):
        _, state, _ = estimator.estimate(jax.random.key(i), theta, state, ())
    for pair in range(2):
        noise = jax.tree.map(lambda x, pair=pair: x[pair], state.noise)
        tx, _ = problem.inner(jax.tree.map(jnp.add, theta, noise), (), (), 16)
        k_restart = jax.random.split(jax.random.key(0))[1]
        k_init = jax.random.split(jax.random.split(k_restart, 2)[pair], 4)[2]
        inner = mt.inner_init(tx, task, k_init)
        inner, _ = mt.unroll(tx, task, inner, state.runs.key[pair], jnp.arange(8))
        np.testing.assert_allclose(
            inner.params, state.runs.inner.params[0, pair], rtol=1e-4
        )


def test_lengths_follow_the_schedule_and_offsets_shorten_the_first(small):
    problem, _, theta = small
    estimator = mt.pes(problem, log_uniform(5, 12), particles=3, truncation=4)
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), theta)
    lengths = []
    for i in range(20):
        _, state, _ = estimate(jax.random.key(i), theta, state, ())
        lengths += np.asarray(state.runs.length).tolist()
    assert min(lengths) >= 5 and max(lengths) < 12 and len(set(lengths)) > 3

    offset = mt.pes(
        cf.problem(), constant(10), particles=200, truncation=2, max_offset=10
    )
    state = offset.init(jax.random.key(0), THETA)
    _, state, _ = offset.estimate(jax.random.key(1), THETA, state, ())
    assert set(np.asarray(state.runs.length).tolist()) == set(range(1, 11))


def test_lengths_follow_the_outer_step():
    # Every estimator hands the outer step to the schedule.
    schedule = mt.growing(2, 6, over=4, jitter=0.0)
    for name in KINDS:
        estimator = _make(name, cf.problem(), schedule, truncation=6, particles=2)
        estimate = jax.jit(estimator.estimate)
        state = estimator.init(jax.random.key(0), THETA)
        steps = []
        for i in (0, 2, 9):
            _, state, info = estimate(jax.random.key(i), THETA, state, (), i)
            steps.append(int(info.inner_steps) / int(info.particles))
        np.testing.assert_allclose(np.array(steps) / steps[0], [1, 2, 3], err_msg=name)


def test_window_cuts_do_not_change_an_unroll(small):
    problem, task, theta = small
    tx, _ = problem.inner(theta, (), (), 6)
    start = mt.inner_init(tx, task, jax.random.key(0))
    key = jax.random.key(1)
    whole, losses = mt.unroll(tx, task, start, key, jnp.arange(6))
    part, first = mt.unroll(tx, task, start, key, jnp.arange(4))
    part, second = mt.unroll(tx, task, part, key, jnp.arange(4, 6))
    np.testing.assert_allclose(jnp.concatenate([first, second]), losses, rtol=1e-6)
    np.testing.assert_allclose(part.params, whole.params, rtol=1e-6)
    # Steps from `length` on are not made.
    cut, some = mt.unroll(tx, task, start, key, jnp.arange(6), length=4)
    np.testing.assert_allclose(some, jnp.append(first, jnp.zeros(2)), rtol=1e-6)
    at_4, _ = mt.unroll(tx, task, start, key, jnp.arange(4))
    np.testing.assert_allclose(cut.params, at_4.params, rtol=1e-6)


def test_every_step_draws_its_own_batch_and_loss_key():
    task = stateless(
        init=lambda key: jnp.float32(0),
        batch=lambda key, split: jax.random.uniform(key),
        loss=lambda x, key, batch: (
            x + batch + 10 * jax.random.randint(key, (), 0, 1000)
        ),
    )
    tx = optax.with_extra_args_support(optax.set_to_zero())
    start = mt.inner_init(tx, task, jax.random.key(0))
    _, losses = mt.unroll(tx, task, start, jax.random.key(1), jnp.arange(8))
    assert len(set((losses % 10).tolist())) == 8
    assert len(set((losses // 10).tolist())) == 8


# --- reverse mode through long scans


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [1, 7, 16, 30])
def test_checkpointing_changes_no_number(levels, length):
    def loss(x):
        def body(carry, t):
            carry = jnp.sin(carry * x + t)
            return carry, carry**2

        end, ys = mt.checkpointed_scan(body, x, jnp.arange(length), levels)
        assert ys.shape == (length,)
        return end + jnp.sum(ys * jnp.arange(length))

    def plain(x):
        carry, total = x, 0.0
        for t in range(length):
            carry = jnp.sin(carry * x + t)
            total += carry**2 * t
        return carry + total

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(0.7))
    expected, expected_slope = jax.jit(jax.value_and_grad(plain))(jnp.float32(0.7))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=2e-4)


def test_checkpointing_bounds_memory():
    # Temporary bytes of the compiled gradient: T = 400 steps of a state of 4 kB.
    length, size = 400, 1000

    def temporaries(levels):
        def loss(x):
            def body(carry, t):
                return jnp.sin(carry + t) * jnp.cos(carry), ()

            end, _ = mt.checkpointed_scan(body, x, jnp.arange(length), levels)
            return jnp.sum(end)

        compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros(size)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * size)

    states = {levels: temporaries(levels) for levels in range(4)}
    assert states[0] > length and length <= states[1] < 1.2 * length
    assert states[2] < 3 * math.sqrt(length)
    assert states[3] < 5 * length ** (1 / 3) + 10


# --- objectives


def _gradient(name, objective, *, length=5, truncation=2, particles=4000, repeats=20):
    """Mean over whole episodes of the estimate, its standard error, last Info."""
    if name in DETERMINISTIC:
        particles, repeats = 2, 1
    estimator = _make(
        name,
        cf.problem(),
        constant(length),
        truncation=truncation,
        particles=particles,
        objective=objective,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), THETA)
    windows = 1 if name in FULL else -(-length // truncation)
    means = []
    for i in range(repeats):
        gradients = []
        for w in range(windows):
            key = jax.random.fold_in(jax.random.key(i), w)
            gradient, state, info = estimate(key, THETA, state, ())
            gradients.append(float(gradient))
        means.append(np.mean(gradients))
    error = np.std(means, ddof=1) / math.sqrt(repeats) if repeats > 1 else 1e-5
    return np.mean(means), error, info


# With the training loss, before each update, an episode of 5 ends with the loss after 4
# updates; evaluated on fresh batches of a split, after 5.
@pytest.mark.parametrize(
    "objective, updates, factor",
    [
        (Objective(over="last"), 4, 1),
        (Objective(over="telescoping"), 4, 1),
        (Objective(split="inner_valid", over="last"), 5, 1),
        (Objective(split="test", over="telescoping", samples=2), 5, 1),
        (Objective(metric="twice", over="last"), 4, 2),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("backprop", "full_es", "pes")
        else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in UNBIASED
    ],
)
def test_the_end_as_objective(name, objective, updates, factor):
    form = ESTIMATORS[name][2]
    mean, error, _ = _gradient(name, objective)
    assert abs(mean - factor * form(updates, 2)) < 4 * error
    assert abs(form(updates, 2)) > 8 * error


@pytest.mark.parametrize("name", UNBIASED)
def test_a_mean_in_which_later_steps_count_more(name):
    # Losses after 0 to 3 updates, with weights 1, 3, 5, 7 over 4.
    form = ESTIMATORS[name][2]
    mean, error, _ = _gradient(name, Objective(over="late"), length=4)
    exact = sum((2 * t + 1) / 4 * form(t, 2) for t in range(1, 4)) / 4
    assert abs(mean - exact) < 4 * error
    assert abs(exact) > 8 * error


@pytest.mark.parametrize("name", ["full_es", "backprop", "pes", "truncated_backprop"])
def test_mean_over_fresh_batches(name):
    form = ESTIMATORS[name][2]
    objective = Objective(split="inner_valid")
    mean, error, _ = _gradient(name, objective, length=4)
    if name == "truncated_backprop":  # after the update: 1 to K updates in a window
        form = lambda t, k: cf.exact(t) * ((t - 1) % k + 1) / t
    assert abs(mean - sum(form(t, 2) for t in (1, 2, 3, 4)) / 4) < 4 * error


def test_the_metric_is_taken_from_the_split():
    # "split" is x on inner_valid, 0 elsewhere: x after 3 updates is x0 r^3.
    valid = Objective(split="inner_valid", metric="split", over="last")
    mean, _, info = _gradient("backprop", valid, length=3)
    np.testing.assert_allclose(mean, -3 * cf.A * cf.X0 * cf.R**2, rtol=1e-5)
    np.testing.assert_allclose(info.meta_loss, cf.X0 * cf.R**3, rtol=1e-5)
    train = valid._replace(split="outer_valid")
    assert _gradient("backprop", train, length=3)[0] == 0


@pytest.mark.parametrize("name", FULL)
def test_the_minimum_as_objective(name):
    # With a learning rate that overshoots, the loss grows: the minimum is the first.
    theta = jnp.float32(3 / cf.A)  # r = -2
    estimator = _make(
        name,
        cf.problem(),
        constant(4),
        truncation=4,
        objective=Objective(split="train", over="min"),
        **({"std": 1e-3} if name == "full_es" else {}),
        particles=3000 if name == "full_es" else 1,
    )
    gradient, _, info = estimator.estimate(jax.random.key(0), theta, (), ())
    np.testing.assert_allclose(info.meta_loss, cf.C * 4, rtol=1e-2)
    exact = -2 * cf.A * cf.C * -2
    np.testing.assert_allclose(
        gradient, exact, rtol=0.15 if name == "full_es" else 1e-5
    )


def test_random_lengths_of_full_unrolls():
    # Steps past the drawn length cost nothing and count nothing.
    estimator = mt.backprop(cf.problem(), log_uniform(2, 9), particles=1, levels=1)
    estimate = jax.jit(estimator.estimate)
    seen = set()
    for i in range(12):
        gradient, _, info = estimate(jax.random.key(i), THETA, (), ())
        length = int(info.inner_steps)
        expected = sum(cf.exact(t) for t in range(1, length)) / length
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
        seen.add(length)
    assert len(seen) > 3


def test_normalisation_by_the_task_and_by_the_objective():
    # The loss stays near c = 1.44, above the bound.
    theta = jnp.float32(1e-3)
    bound = lambda loss: jnp.minimum(loss, 0.5)
    for name in KINDS:
        for problem, objective in (
            (cf.problem(bound), Objective()),
            (cf.problem(), Objective(normalize=bound)),
        ):
            estimator = _make(
                name,
                problem,
                constant(2),
                truncation=2,
                particles=4,
                objective=objective,
                **({"std": 1e-3} if "std" in ESTIMATORS[name][1] else {}),
            )
            state = estimator.init(jax.random.key(0), theta)
            gradient, _, info = jax.jit(estimator.estimate)(
                jax.random.key(1), theta, state, ()
            )
            assert info.meta_loss == 0.5 and gradient == 0, name


# --- variance, clipping, signs


def _linear(dim):
    """Every step's loss is v . theta of that step, whatever the state: |v|^2 = dim."""

    def task(theta, config, data):
        return stateless(
            init=lambda key: jnp.float32(0),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: jnp.sum(theta),
        )

    return mt.learn_hyperparameters(
        lambda key: jnp.zeros(dim), task, tx=optax.set_to_zero()
    )


@pytest.mark.parametrize(
    "name, law",
    [
        ("pes", lambda window, d: window * d + 1),
        ("nres", lambda window, d: d + 1),
        ("forward_gradient", lambda window, d: d + 1),
    ],
)
def test_variance_laws_of_linear_losses(name, law):
    # Trace of the covariance of one pair, in units of |v|^2, window by window.
    dim, windows, n = 3, 4, 20_000
    problem = _linear(dim)
    estimator = _make(name, problem, constant(windows), truncation=1, particles=1)
    theta = jnp.zeros(dim)

    @jax.jit
    @jax.vmap
    def episode(key):
        k_init, *keys = jax.random.split(key, 1 + windows)
        state = estimator.init(k_init, theta)
        gradients = []
        for k in keys:
            gradient, state, _ = estimator.estimate(k, theta, state, ())
            gradients.append(gradient)
        return jnp.stack(gradients)

    gradients = np.asarray(episode(jax.random.split(jax.random.key(0), n)))
    squares = np.sum((gradients - 1.0) ** 2, -1)  # (n, windows); the mean is v = 1
    for window in range(windows):
        expected = law(window + 1, dim) * dim
        error = squares[:, window].std(ddof=1) / math.sqrt(n)
        assert abs(squares[:, window].mean() - expected) < 4 * error
        mean_error = gradients[:, window].std(0, ddof=1) / math.sqrt(n)
        assert np.all(abs(gradients[:, window].mean(0) - 1) < 4 * mean_error)


@pytest.mark.parametrize(
    "name",  # which share the code of differences
    few(["full_es", "pes", "nres", "truncated_es"], ["full_es", "pes"]),
)
def test_sign_and_clip(name):
    dim, std, sign = 3, 0.1, 0.7
    problem = _linear(dim)
    given = {"truncation": 1, "particles": 50_000, "std": std}
    theta = jnp.zeros(dim)
    estimator = _make(name, problem, constant(1), sign=sign, **given)
    state = estimator.init(jax.random.key(0), theta)
    gradient, _, _ = estimator.estimate(jax.random.key(1), theta, state, ())
    # E g = a sqrt(2/pi) / (2 sigma) v / |v|.
    expected = sign * math.sqrt(2 / math.pi) / (2 * std) / math.sqrt(dim)
    np.testing.assert_allclose(gradient, expected, rtol=0.03)
    # A bound that all differences exceed is a sign times the bound.
    clipped = _make(name, problem, constant(1), clip=1e-6, **given)
    bounded, _, _ = clipped.estimate(jax.random.key(1), theta, state, ())
    np.testing.assert_allclose(bounded, gradient * 1e-6 / sign, rtol=1e-3)
    # One that none exceeds changes nothing.
    loose = _make(name, problem, constant(1), clip=1e6, **given)
    plain = _make(name, problem, constant(1), **given)
    np.testing.assert_allclose(
        loose.estimate(jax.random.key(1), theta, state, ())[0],
        plain.estimate(jax.random.key(1), theta, state, ())[0],
    )


# --- what is not finite


def test_non_finite_particles_are_counted_and_left_out():
    # A learning rate with which the run overflows: with theta around 1e30 every
    # particle's does, with an ordinary one none does.
    for name in KINDS:
        estimator = _make(name, cf.problem(), constant(4), truncation=4, particles=5)
        for theta, bad in ((1e30, 5), (0.1, 0)):
            state = estimator.init(jax.random.key(0), jnp.float32(theta))
            gradient, _, info = jax.jit(estimator.estimate)(
                jax.random.key(1), jnp.float32(theta), state, ()
            )
            assert info.nonfinite == bad, name
            assert np.isfinite(gradient) and np.isfinite(info.meta_loss)
            assert (gradient == 0) == (bad == 5)


def test_one_bad_particle_spoils_no_other():
    # A config of 1 in some particles makes the loss NaN.
    def task(bad, data):
        return stateless(
            init=lambda key: jnp.float32(cf.X0),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: cf.A * x**2 / 2 + jnp.where(bad, jnp.nan, 0.0),
        )

    family = TaskFamily(lambda key: jax.random.bernoulli(key, 0.3), task)
    problem = learn_optimizer(cf.sgd(), family)
    for name in KINDS:
        estimator = _make(name, problem, constant(2), truncation=2, particles=50)
        state = estimator.init(jax.random.key(0), THETA)
        gradient, _, info = jax.jit(estimator.estimate)(
            jax.random.key(1), THETA, state, ()
        )
        assert 5 < info.nonfinite < 25, name
        assert np.isfinite(gradient) and gradient < 0, name


def test_an_exploded_gradient_leaves_the_combination_to_es():
    # d/dx sqrt(x) at 0 is infinite while the loss itself is fine.
    def task(theta, config, data):
        return stateless(
            init=lambda key: jnp.float32(0),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: theta + jnp.sqrt(0.0 * theta),
        )

    problem = mt.learn_hyperparameters(
        lambda key: jnp.float32(0), task, tx=optax.set_to_zero()
    )
    given = {"truncation": 1, "particles": 6, "std": 0.1}
    combined, es = (
        make(problem, constant(1), **given)
        for make in (mt.inverse_variance, mt.truncated_es)
    )
    state = es.init(jax.random.key(0), THETA)
    both = [e.estimate(jax.random.key(1), THETA, state, ())[0] for e in (combined, es)]
    np.testing.assert_allclose(*both, rtol=1e-5)


# --- what is not the optimizer's business


def test_initial_optimizer_state_sees_the_perturbed_theta():
    # theta is the initial momentum: only the state made at the reset depends on it.
    def bind(theta, *, num_steps=None):
        def init(params):
            return theta * jnp.ones_like(params)

        def update(grads, state, params=None, **extra):
            return -0.1 * state, state

        return optax.GradientTransformationExtraArgs(init, update)

    optimizer = l2o.LearnedOptimizer(lambda key: jnp.float32(0.3), bind)
    problem = learn_optimizer(optimizer, cf.parabola())
    theta = jnp.float32(0.3)
    # L_1 = a (x0 - 0.1 theta)^2 / 2, and L_0 does not depend on theta; mean of both.
    exact = -0.1 * cf.A * (cf.X0 - 0.1 * 0.3) / 2
    for name in KINDS:
        given = {"std": 0.01} if "std" in ESTIMATORS[name][1] else {}
        estimator = _make(
            name, problem, constant(2), truncation=2, particles=4000, **given
        )
        state = estimator.init(jax.random.key(0), theta)
        estimate = jax.jit(estimator.estimate)
        gradients = []
        for i in range(20):
            gradient, state, _ = estimate(jax.random.key(i), theta, state, ())
            gradients.append(float(gradient))
        error = np.std(gradients, ddof=1) / math.sqrt(len(gradients)) + 1e-6
        assert abs(np.mean(gradients) - exact) < 4 * error, name
        assert abs(exact) > 20 * error, name


def test_frozen_parts_get_no_gradient():
    optimizer = l2o.learnable_adam(learning_rate=0.05)
    problem = learn_optimizer(optimizer, cf.parabola())
    theta = problem.init_theta(jax.random.key(0))
    first, *rest = sorted(theta)
    frozen = learn_optimizer(optimizer._replace(frozen=(first,)), cf.parabola())
    for name in KINDS:
        estimator = _make(name, frozen, constant(4), truncation=4, particles=3)
        state = estimator.init(jax.random.key(0), theta)
        gradient, _, _ = jax.jit(estimator.estimate)(
            jax.random.key(1), theta, state, ()
        )
        assert gradient[first] == 0, name
        assert any(gradient[part] != 0 for part in rest), name


def _influence():
    """Influence balancing: far influences of theta have the other sign than near ones.

    s' = A s + theta b in R^23, A with 1/2 on the diagonal and above it, b = +1 ten
    times and -1 thirteen times; the loss is (s_1 - 1)^2 / 2.
    """
    size = 23
    matrix = 0.5 * (jnp.eye(size) + jnp.eye(size, k=1))
    push = jnp.where(jnp.arange(size) < 10, 1.0, -1.0)

    def bind(theta, *, num_steps=None):
        def update(grads, state, params, **extra):
            return matrix @ params + theta * push - params, state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    optimizer = l2o.LearnedOptimizer(lambda key: jnp.float32(0.5), bind)
    task = stateless(
        init=lambda key: jnp.zeros(size),
        batch=lambda key, split: (),
        loss=lambda s, key, batch: (s[0] - 1) ** 2 / 2,
    )
    return learn_optimizer(
        optimizer, TaskFamily(lambda key: (), lambda config, data: task)
    )


def test_influence_balancing():
    # Truncated windows get the sign wrong until they are 41 steps long; in the limit
    # s_1 = -6 theta. Published sensitivities: +16.476 over 19 steps, -6 over all.
    problem, theta = _influence(), jnp.float32(0.5)
    end = Objective(split="train", over="telescoping")
    slope = (-6 * theta - 1) * -6
    for window, sensitivity in ((19, 16.476), (41, None), (200, -6.0)):
        windows = -(-400 // window)
        estimator = mt.truncated_backprop(
            problem,
            constant(window * windows),
            particles=1,
            truncation=window,
            objective=end,
        )
        estimate = jax.jit(estimator.estimate)
        state = estimator.init(jax.random.key(0), theta)
        for i in range(windows):
            gradient, state, _ = estimate(jax.random.key(i), theta, state, ())
        gradient = float(gradient) / windows
        assert (gradient < 0) == (window == 19)
        if sensitivity is not None:
            expected = (-6 * theta - 1) * sensitivity
            np.testing.assert_allclose(gradient, expected, rtol=1e-3)
    exact = mt.backprop(
        problem, constant(400), particles=1, objective=Objective("train", over="last")
    )
    gradient, _, _ = jax.jit(exact.estimate)(jax.random.key(0), theta, (), ())
    np.testing.assert_allclose(gradient, slope, rtol=1e-3)
    # With windows of 10 steps the persistent ones are right.
    for name in ("nres", "forward_gradient"):
        given = {} if name == "forward_gradient" else {"std": 0.1}
        estimator = _make(
            name,
            problem,
            constant(200),
            truncation=10,
            particles=300,
            objective=Objective("train", over="telescoping"),
            **given,
        )
        estimate = jax.jit(estimator.estimate)
        state = estimator.init(jax.random.key(0), theta)
        total = 0.0
        for i in range(20):
            gradient, state, _ = estimate(jax.random.key(i), theta, state, ())
            total += float(gradient) / 20
        np.testing.assert_allclose(total, slope, rtol=0.5, err_msg=name)


# --- bad input


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"particles": 0}, "particles >= [12]"),
        ({"truncation": 0}, "truncation >= 1"),
        ({"std": 0.0}, "std must be positive"),
        ({"std": float("nan")}, "std must be positive"),
        ({"max_offset": -1}, "max_offset >= 0"),
        ({"sign": -1.0}, "sign must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"levels": -1}, "levels of checkpointing must be >= 0"),
        ({"objective": Objective(over="min")}, "use an estimator of full unrolls"),
        ({"objective": Objective(over="best")}, "unknown Objective.over 'best'; known"),
        ({"objective": Objective("valid")}, "unknown split 'valid'; known: train"),
        ({"objective": Objective(samples=3)}, "needs a split"),
        ({"objective": Objective("train", samples=0)}, "samples must be >= 1"),
        ({"objective": Objective(metric="f1")}, "no metric 'f1'.*known: split, twice"),
        ({"carry": "minus"}, "unknown carry 'minus'; known: perturbed"),
        ({"period": 3}, r"period \(3\) must be a multiple of truncation \(2\)"),
    ],
)
def test_bad_arguments(bad, match):
    tried = 0
    for make in (
        mt.pes, mt.nres, mt.gpes, mt.truncated_es, mt.full_es, mt.backprop,
        mt.truncated_backprop, mt.forward_gradient, mt.inverse_variance,
    ):  # fmt: skip
        known = make.__kwdefaults__ or {}
        takes = {*known, "period"} if make is mt.gpes else set(known)
        full = make in (mt.full_es, mt.backprop)
        objective = bad.get("objective", Objective())
        if not set(bad) <= takes or (full and objective.over == "min"):
            continue
        given = {"truncation": 2, "period": 2}
        given = {k: v for k, v in given.items() if k in takes}
        tried += 1
        with pytest.raises(ValueError, match=match):
            estimator = make(cf.problem(), constant(4), **{**given, **bad})
            state = estimator.init(jax.random.key(0), THETA)
            estimator.estimate(jax.random.key(0), THETA, state, ())
    assert tried


def test_schedules():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(log_uniform(10, 100))(keys))
    assert drawn.min() == 10 and drawn.max() < 100
    # The median of a log-uniform law is the geometric mean of its ends.
    assert abs(np.median(drawn) - math.sqrt(10 * 100)) < 2
    assert set(np.asarray(jax.vmap(constant(7))(keys[:3])).tolist()) == {7}
    for low, high in itertools.product((0, 5), (3, -1)):
        with pytest.raises(ValueError, match="0 < low <= high"):
            log_uniform(low, high)


def test_schedules_that_grow():
    keys = jax.random.split(jax.random.key(0), 4000)
    grown = log_uniform(100, 1000, start=(10, 100), over=10)
    for step, low, high in (
        (0, 10, 100),
        (5, 55, 550),
        (10, 100, 1000),
        (99, 100, 1000),
    ):
        drawn = np.asarray(jax.vmap(grown, in_axes=(0, None))(keys, step))
        assert low <= drawn.min() <= 1.05 * low and 0.95 * high < drawn.max() <= high
        assert abs(np.median(drawn) / math.sqrt(low * high) - 1) < 0.08
    assert (grown.minimum, grown.maximum) == (10, 1000)

    jittered = mt.growing(100, 300, over=4, jitter=0.2)
    for step, middle in ((0, 100), (2, 200)):
        drawn = np.asarray(jax.vmap(jittered, in_axes=(0, None))(keys, step))
        assert abs(drawn.mean() / middle - 1) < 0.01
        assert abs(drawn.min() / middle - 0.8) < 0.015
        assert abs(drawn.max() / middle - 1.2) < 0.015
    drawn = np.asarray(jax.vmap(jittered, in_axes=(0, None))(keys, 4))
    assert drawn.max() == jittered.maximum == 300 and jittered.minimum == 80
    with pytest.raises(ValueError, match="needs over >= 1"):
        log_uniform(1, 2, start=(1, 1))
    with pytest.raises(ValueError, match="over >= 1 and 0 <= jitter < 1"):
        mt.growing(1, 2, over=3, jitter=1.0)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="particles at once there")
def test_memory_of_a_particle_is_that_of_its_states():
    problem = learn_optimizer(l2o.learnable_adam(), make_family("mlp32"))
    theta = problem.init_theta(jax.random.key(0))

    def memory(particles):
        estimator = mt.pes(problem, constant(20), particles=particles, truncation=5)
        state = jax.eval_shape(estimator.init, jax.random.key(0), theta)
        estimate = jax.jit(estimator.estimate, donate_argnums=2)
        lowered = estimate.lower(jax.random.key(0), theta, state, problem.data, 0)
        temporary = lowered.compile().memory_analysis().temp_size_in_bytes
        return temporary, sum(4 * x.size for x in jax.tree.leaves(state))

    temporary, own = np.subtract(memory(6), memory(2))
    assert own > 4 * 2 * 3 * 4 * 2000  # particles, signs, Adam, bytes, parameters
    assert temporary < 0.1 * own
