"""PES against exact gradients, and the window and episode bookkeeping it rests on."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.meta_train import constant, inner_init, log_uniform, pes, unroll
from l2o.tasks import TaskFamily, stateless

# f = a x^2 / 2 trained by SGD whose learning rate is theta.
A, X0, THETA, STD = 1.7, 1.3, 0.35, 0.2
R, C = 1 - A * THETA, A * X0**2 / 2


def _sgd():
    def bind(theta, *, num_steps=None):
        return optax.with_extra_args_support(optax.sgd(theta))

    return l2o.LearnedOptimizer(lambda key: jnp.float32(THETA), bind)


def _parabola(normalize=lambda loss: loss):
    task = stateless(
        init=lambda key: jnp.float32(X0),
        batch=lambda key, split: (),
        loss=lambda x, key, batch: A * x**2 / 2,
        normalize=normalize,
    )
    return TaskFamily(lambda key: (), lambda config, data: task)


def _smoothed(k):
    """E (r - a eps)^(2k) and its derivative with respect to theta."""
    e = A * STD

    def term(i, power, factor):
        odd = math.prod(range(1, 2 * i, 2))
        return math.comb(2 * k, 2 * i) * factor * R**power * e ** (2 * i) * odd

    value = sum(term(i, 2 * k - 2 * i, 1.0) for i in range(k + 1))
    slope = -A * sum(term(i, 2 * k - 2 * i - 1, 2 * k - 2 * i) for i in range(k))
    return value, slope


def _exact(truncation, length):
    """The smoothed gradient of the sum of an episode's losses, window by window.

    Losses are recorded before the update, so L_t = c M_K^n M_j for t = nK + j and
    0 <= j < K, with independent perturbations in the n windows before.
    """
    total = 0.0
    for t in range(length):
        n, j = divmod(t, truncation)
        full, dfull = _smoothed(truncation)
        part, dpart = _smoothed(j) if j else (1.0, 0.0)
        total += C * full**n * dpart
        total += C * n * full ** max(n - 1, 0) * dfull * part if n else 0.0
    return total


def test_the_closed_form_agrees_with_published_numbers():
    # facts: d/dtheta of the single loss L_t at these constants.
    steps = [_exact(1, t + 1) - _exact(1, t) for t in (1, 2, 3)]
    np.testing.assert_allclose(steps, [-1.978061, -1.106230, -0.463994], atol=2e-6)
    steps = [_exact(2, t + 1) - _exact(2, t) for t in (1, 2, 3, 4)]
    np.testing.assert_allclose(
        steps, [-1.978061, -2.020886, -0.922648, -0.730599], atol=2e-6
    )


def _episode_sums(truncation, length, *, particles=4000, repeats=25, offset=0):
    """Sum of the window gradients of one episode, for independent repeats."""
    estimator = pes(
        _sgd(),
        _parabola(),
        constant(length),
        particles=particles,
        truncation=truncation,
        std=STD,
        max_offset=offset,
    )
    estimate = jax.jit(estimator.estimate)
    theta = jnp.float32(THETA)
    state = estimator.init(jax.random.key(0), theta)
    windows = -(-length // truncation)
    sums = []
    for repeat in range(repeats):
        total = 0.0
        for window in range(windows):
            key = jax.random.fold_in(jax.random.key(repeat), window)
            gradient, state, _ = estimate(key, theta, state, ())
            total += float(gradient) * truncation
        sums.append(total)
    return np.array(sums)


# Windows that divide the episode, that do not (the last one is cut), one window, and
# repeats that go on from the state of the last: every episode starts with a reset.
@pytest.mark.parametrize("truncation, length", [(1, 4), (2, 4), (2, 5), (3, 4), (4, 4)])
def test_mean_is_the_exact_smoothed_gradient(truncation, length):
    sums = _episode_sums(truncation, length)
    error = sums.std(ddof=1) / math.sqrt(len(sums))
    assert abs(sums.mean() - _exact(truncation, length)) < 4 * error
    # The test can tell the persistent part from truncated ES, which leaves it out.
    truncated = sum(
        C * _smoothed(truncation)[0] ** (t // truncation) * _smoothed(t % truncation)[1]
        for t in range(length)
        if t % truncation
    )
    if truncation < length:
        assert abs(sums.mean() - truncated) > 4 * error


def test_mean_over_desynchronised_particles():
    # With uniformly drawn phases each call sees all windows of an episode at once.
    truncation, length = 2, 6
    estimator = pes(
        _sgd(),
        _parabola(),
        constant(length),
        particles=6000,
        truncation=truncation,
        std=STD,
        max_offset=length,
    )
    estimate = jax.jit(estimator.estimate)
    theta = jnp.float32(THETA)
    state = estimator.init(jax.random.key(1), theta)
    gradients, ended = [], []
    for i in range(63):
        gradient, state, info = estimate(jax.random.key(100 + i), theta, state, ())
        gradients.append(float(gradient))
        ended.append(int(info.episodes))
    windows = length // truncation
    # After the shortened first episodes; whole episodes only: 20 of them.
    per_episode = np.array(gradients[windows:]).reshape(-1, windows).mean(1)
    error = per_episode.std(ddof=1) / math.sqrt(len(per_episode))
    exact = _exact(truncation, length) / length
    assert abs(per_episode.mean() - exact) < 4 * error
    assert min(ended) > 0  # in every call some particle restarts


def test_vector_theta_agrees_with_finite_differences():
    # Two meta-parameters (SGD with momentum), noisy batches, small perturbations: the
    # smoothed gradient is the gradient, taken here by central differences.
    std, length, truncation = 2e-3, 6, 2

    def bind(theta, *, num_steps=None):
        return optax.with_extra_args_support(
            optax.sgd(theta[0] / 10, momentum=theta[1])
        )

    optimizer = l2o.LearnedOptimizer(lambda key: jnp.array([0.5, 0.5]), bind)
    curvature = jnp.array([1.0, 3.0])
    task = stateless(
        init=lambda key: jnp.array([1.0, -1.0]),
        batch=lambda key, split: jnp.zeros(2),
        loss=lambda x, key, batch: jnp.sum(curvature * x**2) / 2,
    )
    family = TaskFamily(lambda key: (), lambda config, data: task)
    theta = optimizer.init_theta(jax.random.key(0))

    @jax.jit
    def meta_loss(theta):
        tx = optimizer.bind(theta)
        inner = inner_init(tx, task, jax.random.key(0))
        return jnp.mean(unroll(tx, task, inner, jax.random.key(0), jnp.arange(6))[1])

    h = 1e-2
    exact = [
        (meta_loss(theta + h * e) - meta_loss(theta - h * e)) / (2 * h)
        for e in jnp.eye(2)
    ]
    estimator = pes(
        optimizer,
        family,
        constant(length),
        particles=20_000,
        truncation=truncation,
        std=std,
    )
    estimate = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), theta)
    means = []
    for i in range(25):
        window_gradients = []
        for w in range(length // truncation):
            key = jax.random.fold_in(jax.random.key(i), w)
            gradient, state, _ = estimate(key, theta, state, ())
            window_gradients.append(gradient)
        means.append(np.mean(window_gradients, 0))
    error = np.std(means, 0, ddof=1) / math.sqrt(len(means))
    # Finite differences themselves are good to about 1e-3 relative here.
    slack = 2e-3 * np.abs(exact)
    assert np.all(np.abs(np.mean(means, 0) - exact) < 4 * error + slack)
    assert np.all(np.abs(exact) > 15 * error)  # sharp enough to be wrong


@pytest.fixture(scope="module")
def small():
    """A noisy quadratic with learnable Adam: estimator, theta, compiled estimate."""
    optimizer = l2o.learnable_adam(learning_rate=0.05)
    task = stateless(
        init=lambda key: jax.random.normal(key, (3,)),
        batch=lambda key, split: 0.1 * jax.random.normal(key, (3,)),
        loss=lambda x, key, noise: jnp.sum((x - noise) ** 2),
    )
    family = TaskFamily(lambda key: (), lambda config, data: task)
    estimator = pes(
        optimizer, family, log_uniform(5, 12), particles=3, truncation=4, std=0.05
    )
    theta = optimizer.init_theta(jax.random.key(0))
    return estimator, theta, jax.jit(estimator.estimate), optimizer, task


def test_accumulator_is_the_sum_of_perturbations_since_the_last_reset(small):
    estimator, theta, estimate, *_ = small
    state = estimator.init(jax.random.key(0), theta)
    resets = 0
    for i in range(12):
        started = np.asarray(state.step >= state.length)
        before = state.accumulator
        _, state, _ = estimate(jax.random.key(i), theta, state, ())
        fresh = estimator.init(jax.random.key(0), theta)
        _, fresh, _ = estimate(jax.random.key(i), theta, fresh, ())
        # A state of which all pairs restart has just this window's perturbation.
        for a, b, noise in zip(
            jax.tree.leaves(state.accumulator),
            jax.tree.leaves(before),
            jax.tree.leaves(fresh.accumulator),
        ):
            expected = np.where(started, 0, b) + noise
            np.testing.assert_allclose(a, expected, rtol=1e-6, atol=1e-7)
        resets += int(started.sum())
    assert 3 < resets < 36  # both cases were seen


def test_lengths_follow_the_schedule_and_offsets_shorten_the_first(small):
    estimator, theta, estimate, *_ = small
    state = estimator.init(jax.random.key(0), theta)
    lengths = []
    for i in range(20):
        _, state, _ = estimate(jax.random.key(i), theta, state, ())
        lengths += np.asarray(state.length).tolist()
    assert min(lengths) >= 5 and max(lengths) < 12 and len(set(lengths)) > 3

    offset = pes(
        _sgd(), _parabola(), constant(10), particles=200, truncation=2, max_offset=10
    )
    theta = jnp.float32(THETA)
    state = offset.init(jax.random.key(0), theta)
    _, state, _ = offset.estimate(jax.random.key(1), theta, state, ())
    assert set(np.asarray(state.length).tolist()) == set(range(1, 11))


def test_runs_of_a_pair_share_everything_but_theta(small):
    # Without a perturbation to speak of, both runs are the same run, and equal to an
    # uncut unroll with the pair's keys.
    _, theta, _, optimizer, task = small
    family = TaskFamily(lambda key: (), lambda config, data: task)
    estimator = pes(
        optimizer, family, constant(8), particles=2, truncation=4, std=1e-12
    )
    state = estimator.init(jax.random.key(0), theta)
    for i in range(2):
        _, state, _ = estimator.estimate(jax.random.key(i), theta, state, ())
        if i == 0:
            first = state
    np.testing.assert_array_equal(state.inner.params[0], state.inner.params[1])
    tx = optimizer.bind(theta)
    for pair in range(2):
        inner = jax.tree.map(lambda x, pair=pair: x[0, pair], first.inner)
        inner, _ = unroll(tx, task, inner, state.key[pair], jnp.arange(4, 8))
        np.testing.assert_allclose(inner.params, state.inner.params[0, pair], rtol=1e-5)


def test_window_cuts_do_not_change_an_unroll(small):
    _, theta, _, optimizer, task = small
    tx = optimizer.bind(theta)
    start = inner_init(tx, task, jax.random.key(0))
    key = jax.random.key(1)
    whole, losses = unroll(tx, task, start, key, jnp.arange(6))
    part, first = unroll(tx, task, start, key, jnp.arange(4))
    part, second = unroll(tx, task, part, key, jnp.arange(4, 6))
    np.testing.assert_allclose(jnp.concatenate([first, second]), losses, rtol=1e-6)
    np.testing.assert_allclose(part.params, whole.params, rtol=1e-6)


def test_every_step_draws_its_own_batch_and_loss_key():
    task = stateless(
        init=lambda key: jnp.float32(0),
        batch=lambda key, split: jax.random.uniform(key),
        loss=lambda x, key, batch: (
            x + batch + 10 * jax.random.randint(key, (), 0, 1000)
        ),
    )
    tx = optax.with_extra_args_support(optax.set_to_zero())
    start = inner_init(tx, task, jax.random.key(0))
    _, losses = unroll(tx, task, start, jax.random.key(1), jnp.arange(8))
    assert len(set((losses % 10).tolist())) == 8
    assert len(set((losses // 10).tolist())) == 8


def test_first_window_equals_antithetic_es_by_hand(small):
    # K = horizon: PES is full-unroll antithetic ES for the same keys.
    _, theta, _, optimizer, task = small
    family = TaskFamily(lambda key: (), lambda config, data: task)
    n, length, std = 2, 5, 0.05
    estimator = pes(
        optimizer, family, constant(length), particles=n, truncation=length, std=std
    )
    state = estimator.init(jax.random.key(0), theta)
    key = jax.random.key(3)
    gradient, state, info = estimator.estimate(key, theta, state, ())

    expected = jax.tree.map(jnp.zeros_like, theta)
    total = 0.0
    # The draw of the pair's initialisation key, as the estimator makes it.
    k_restart = jax.random.split(key)[1]
    for i, k in enumerate(jax.random.split(k_restart, n)):
        k_init = jax.random.split(k, 4)[2]
        noise = jax.tree.map(lambda a, i=i: a[i], state.accumulator)
        losses = []
        for sign in (1, -1):
            tx = optimizer.bind(
                jax.tree.map(lambda t, e, s=sign: t + s * e, theta, noise)
            )
            inner = inner_init(tx, task, k_init)
            trace = []
            for t in range(length):
                inner, loss = unroll(
                    tx, task, inner, state.key[i], jnp.arange(t, t + 1)
                )
                trace.append(float(loss[0]))
            losses.append(np.mean(trace))
        total += sum(losses)
        scale = (losses[0] - losses[1]) / (2 * std**2 * n)
        expected = jax.tree.map(lambda g, e, s=scale: g + s * e, expected, noise)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(info.meta_loss, total / (2 * n), rtol=1e-5)
    assert int(info.inner_steps) == 2 * n * length


def test_jit_changes_nothing_and_compiles_once(small):
    estimator, theta, *_ = small
    compiled = jax.jit(estimator.estimate)
    state = plain_state = estimator.init(jax.random.key(0), theta)
    for i in range(3):
        key = jax.random.key(i)
        gradient, state, info = compiled(key, theta, state, ())
        plain, plain_state, plain_info = estimator.estimate(key, theta, plain_state, ())
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain)):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(info.meta_loss, plain_info.meta_loss, rtol=1e-5)
    assert compiled._cache_size() == 1


def test_non_finite_pairs_are_counted_and_left_out():
    # A learning rate whose perturbation makes the run overflow: with theta around 1e30
    # every pair does, with an ordinary one none does.
    estimator = pes(
        _sgd(), _parabola(), constant(4), particles=5, truncation=4, std=STD
    )
    for theta, bad in ((1e30, 5), (0.1, 0)):
        state = estimator.init(jax.random.key(0), jnp.float32(theta))
        gradient, _, info = estimator.estimate(
            jax.random.key(1), jnp.float32(theta), state, ()
        )
        assert info.nonfinite == bad
        assert np.isfinite(gradient) and np.isfinite(info.meta_loss)
        assert (gradient == 0) == (bad == 5)


def test_meta_loss_is_normalised_by_the_task():
    clip = pes(
        _sgd(),
        _parabola(lambda loss: jnp.minimum(loss, 0.5)),
        constant(2),
        particles=4,
        truncation=2,
        std=1e-3,
    )
    theta = jnp.float32(1e-3)  # the loss stays near c = 1.44, above the clip
    state = clip.init(jax.random.key(0), theta)
    gradient, _, info = clip.estimate(jax.random.key(1), theta, state, ())
    assert info.meta_loss == 0.5 and gradient == 0


def test_initial_optimizer_state_sees_the_perturbed_theta():
    # theta is the initial momentum: only the state made at the reset depends on it.
    def bind(theta, *, num_steps=None):
        def init(params):
            return theta * jnp.ones_like(params)

        def update(grads, state, params=None, **extra):
            return -0.1 * state, state

        return optax.GradientTransformationExtraArgs(init, update)

    optimizer = l2o.LearnedOptimizer(lambda key: jnp.float32(0.3), bind)
    estimator = pes(
        optimizer, _parabola(), constant(2), particles=4000, truncation=2, std=0.01
    )
    theta = jnp.float32(0.3)
    state = estimator.init(jax.random.key(0), theta)
    estimate = jax.jit(estimator.estimate)
    gradients = []
    for i in range(20):
        gradient, state, _ = estimate(jax.random.key(i), theta, state, ())
        gradients.append(float(gradient))
    # L_1 = a (x0 - 0.1 theta)^2 / 2, and L_0 does not depend on theta; mean of both.
    exact = -0.1 * A * (X0 - 0.1 * 0.3) / 2
    error = np.std(gradients, ddof=1) / math.sqrt(len(gradients))
    assert abs(np.mean(gradients) - exact) < 4 * error
    assert abs(exact) > 20 * error


@pytest.mark.parametrize(
    "bad", [{"particles": 0}, {"truncation": 0}, {"std": 0.0}, {"std": float("nan")}]
)
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match="particles >= 1, truncation >= 1 and std > 0"):
        pes(_sgd(), _parabola(), constant(4), **bad)


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
