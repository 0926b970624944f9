"""What every estimator's mean rests on: runs, resets, perturbations, windows."""

import functools

import closed_forms as cf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_estimator import ESTIMATORS, FULL, THETA, estimator_of, noisy_quadratics

import l2o
from l2o import meta_train as mt
from l2o.meta_train import constant, learn_optimizer, log_uniform
from l2o.tasks import TaskFamily, stateless

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
    estimator = estimator_of(
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
    estimator = estimator_of(
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
    problem = noisy_quadratics()
    theta = problem.init_theta(jax.random.key(0))
    results = []
    for name in ("pes", "nres", "gpes", "truncated_es", "full_es"):
        estimator = estimator_of(
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
    estimator = estimator_of(
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
