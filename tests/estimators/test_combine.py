"""Estimators made of estimators, and populations of outer loops."""

import closed_forms as cf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o import meta_train as mt
from l2o.meta_train import constant, learn_optimizer
from l2o.tasks import quadratic

THETA = jnp.float32(cf.THETA)


def test_average_is_the_mean_over_families():
    optimizer = l2o.learnable_sgdm()
    problems = [learn_optimizer(optimizer, quadratic(d)) for d in (2, 3)]
    parts = [
        mt.pes(problems[0], constant(8), truncation=4, particles=2),
        mt.truncated_backprop(problems[1], constant(8), truncation=4, particles=3),
    ]
    both = mt.average(parts)
    theta = problems[0].init_theta(jax.random.key(0))
    key = jax.random.key(1)
    state = both.init(key, theta)
    data = tuple(p.data for p in problems)
    gradient, state, info = jax.jit(both.estimate)(key, theta, state, data, 0)
    keys = jax.random.split(key, 2)
    alone = [
        part.estimate(k, theta, part.init(k, theta), p.data, 0)
        for part, k, p in zip(parts, keys, problems)
    ]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, alone[0][0], alone[1][0])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    infos = [x[2] for x in alone]
    assert int(info.inner_steps) == sum(int(i.inner_steps) for i in infos) == 2 * 8 + 12
    assert int(info.particles) == 5
    np.testing.assert_allclose(
        info.meta_loss, (2 * infos[0].meta_loss + 3 * infos[1].meta_loss) / 5, rtol=1e-5
    )
    assert jax.tree.structure(state) == jax.tree.structure(both.init(key, theta))
    with pytest.raises(ValueError, match="at least one estimator"):
        mt.average([])


def test_accumulate_is_the_mean_over_successive_windows():
    estimator = mt.pes(cf.problem(), constant(6), truncation=2, particles=3, std=0.1)
    four = mt.accumulate(estimator, 4)
    state = plain = estimator.init(jax.random.key(0), THETA)
    key = jax.random.key(1)
    gradient, state, info = jax.jit(four.estimate)(key, THETA, state, (), 0)
    gradients, steps = [], 0
    for k in jax.random.split(key, 4):
        g, plain, one = estimator.estimate(k, THETA, plain, (), 0)
        gradients.append(g)
        steps += int(one.inner_steps)
    np.testing.assert_allclose(gradient, np.mean(gradients), rtol=1e-4)
    np.testing.assert_allclose(
        state.runs.inner.params, plain.runs.inner.params, rtol=1e-5
    )
    assert int(info.inner_steps) == steps and int(info.particles) == 12
    with pytest.raises(ValueError, match="draws >= 1"):
        mt.accumulate(estimator, 0)


def test_a_step_without_a_finite_particle_is_skipped():
    estimator = mt.pes(cf.problem(), constant(4), truncation=4, particles=2)
    tx = optax.adam(0.1)
    step = jax.jit(mt.make_outer_step(estimator, tx))
    for theta, skipped in ((1e30, True), (0.1, False)):
        theta = jnp.float32(theta)
        outer = mt.Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(0))
        worker = estimator.init(jax.random.key(1), theta)
        after, _, info = step(outer, worker, ())
        assert bool(info.skipped) == skipped
        assert (after.theta == theta) == skipped
        assert optax.tree.get(after.opt_state, "count") == 1 - skipped


# --- populations


SIZE = 4


def _population(rates):
    problem = cf.problem()
    estimator = mt.pes(problem, constant(4), truncation=4, particles=16, std=0.05)

    def outer_step(hypers):
        return mt.make_outer_step(estimator, optax.sgd(hypers["learning_rate"]))

    def init(hypers, key):
        tx = optax.sgd(hypers["learning_rate"])
        theta = jnp.float32(0.05)
        return mt.Outer(theta, tx.init(theta), jnp.int32(0), key)

    hypers = {"learning_rate": jnp.asarray(rates)}
    population = mt.make_population(init, hypers, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(rates))
    worker = jax.vmap(estimator.init)(keys, population.outer.theta)
    return estimator, population, worker, jax.jit(mt.make_population_step(outer_step))


def test_members_are_what_single_runs_are():
    rates = [1e-3, 1e-2]
    estimator, population, worker, step = _population(rates)
    start = population
    singles = jax.tree.map(lambda x: x, worker)
    for _ in range(3):
        population, worker, info = step(population, worker, ())
    for i, rate in enumerate(rates):
        outer = jax.tree.map(lambda x, i=i: x[i], start.outer)
        single = jax.tree.map(lambda x, i=i: x[i], singles)
        alone = jax.jit(mt.make_outer_step(estimator, optax.sgd(rate)))
        losses = []
        for _ in range(3):
            outer, single, one = alone(outer, single, ())
            losses.append(float(one.estimate.meta_loss))
        np.testing.assert_allclose(population.outer.theta[i], outer.theta, rtol=1e-5)
        np.testing.assert_allclose(population.score[i], np.mean(losses), rtol=1e-5)
    assert info.skipped.shape == (2,)


def test_exchange_copies_the_best_over_the_worst():
    _, population, worker, _ = _population([1e-4, 1e-3, 1e-2, 1e-1])
    population = population._replace(
        score=jnp.array([0.3, 0.1, jnp.inf, 0.2]),
        outer=population.outer._replace(theta=jnp.arange(4.0)),
        updates=jnp.full(4, 7, jnp.int32),
    )
    tagged = {"inner": worker, "tag": jnp.arange(4)}
    ups = set()
    for seed in range(8):
        after, moved = mt.exchange(jax.random.key(seed), population, tagged)
        # Member 2 is now a copy of member 1, but for its key; the rest is untouched.
        assert after.outer.theta.tolist() == [0, 1, 1, 3]
        assert moved["tag"].tolist() == [0, 1, 1, 3]
        np.testing.assert_array_equal(
            jax.random.key_data(after.outer.key),
            jax.random.key_data(population.outer.key),
        )
        rates = after.hypers["learning_rate"]
        np.testing.assert_allclose(rates[jnp.array([0, 1, 3])], [1e-4, 1e-3, 1e-1])
        ups.add(round(float(rates[2] / 1e-3), 3))
        # So that a run that ends here exports its best, not its first.
        assert after.updates.tolist() == [0] * 4
        assert int(mt.best_member(after)) in (1, 2)
        np.testing.assert_allclose(after.score, [0.3, 0.1, 0.1, 0.2])
    assert ups == {1.25, 0.8}
    assert int(mt.best_member(population)) == 1
    # The next step's scores owe nothing to the old ones, infinite or not.
    _, fresh, worker, step = _population([1e-4, 1e-3, 1e-2, 1e-1])
    stale = fresh._replace(score=jnp.array([jnp.inf, -9.0, 5.0, jnp.inf]))
    scores = [step(p, worker, ())[0].score for p in (fresh, stale)]
    np.testing.assert_array_equal(*scores)
    assert np.isfinite(scores[0]).all()
    one = jax.tree.map(lambda x: x[:1], population)
    alone, _ = mt.exchange(jax.random.key(0), one, ())
    assert alone.outer.theta.tolist() == [0]
    for bad in ({"share": 0.6}, {"share": 0.0}, {"factor": 1.0}):
        with pytest.raises(ValueError, match="0 < share <= 0.5 and factor > 1"):
            mt.exchange(jax.random.key(0), population, (), **bad)


def test_a_population_finds_a_learning_rate():
    # All start far too low; without exchanges none gets anywhere.
    rates = [1e-5, 2e-5, 4e-5, 8e-5]
    _, population, worker, step = _population(rates)
    exchange = jax.jit(lambda key, p, w: mt.exchange(key, p, w, share=0.5, factor=3.0))
    alone, alone_worker = population, worker
    for i in range(200):
        population, worker, _ = step(population, worker, ())
        alone, alone_worker, _ = step(alone, alone_worker, ())
        if i % 10 == 9 and i < 190:
            population, worker = exchange(jax.random.key(i), population, worker)
    best, single = (float(p.score[mt.best_member(p)]) for p in (population, alone))
    assert population.hypers["learning_rate"].max() > 10 * max(rates)
    assert best < 0.7 * single
