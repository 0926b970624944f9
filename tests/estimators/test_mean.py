"""Every estimator's mean against an exact gradient."""

import functools
import math

import closed_forms as cf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_estimator import (
    DETERMINISTIC,
    ESTIMATORS,
    FULL,
    KINDS,
    THETA,
    UNBIASED,
    WINDOWED,
    estimator_of,
    noisy_quadratics,
)
from helpers import few

import l2o
from l2o import meta_train as mt
from l2o.meta_train import Objective, constant, learn_optimizer
from l2o.tasks import TaskFamily, stateless


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


def _episode_sums(name, truncation, length, *, particles=4000, repeats=25):
    """Sum of the gradients of one episode's losses, for successive episodes."""
    truncation = length if name in FULL else truncation
    estimator = estimator_of(
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
    estimator = estimator_of(
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
    estimator = estimator_of(
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


@functools.cache
def _slopes(length):
    """Of the mean over many tasks of the loss of `noisy_quadratics`, by differences."""
    problem = noisy_quadratics()
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
    problem, length, truncation = noisy_quadratics(), 6, 2
    theta, exact = problem.init_theta(jax.random.key(0)), _slopes(length)
    given = {"std": 2e-3} if "std" in ESTIMATORS[name][1] else {}
    estimator = estimator_of(
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
        estimator = estimator_of(
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
        estimator = estimator_of(
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
