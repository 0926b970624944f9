"""Lengths of episodes: drawn, growing, by the outer step."""

import itertools
import math

import closed_forms as cf
import jax
import numpy as np
import pytest
from every_estimator import KINDS, THETA, estimator_of

from l2o import meta_train as mt
from l2o.meta_train import constant, log_uniform


def test_lengths_follow_the_outer_step():
    # Every estimator hands the outer step to the schedule.
    schedule = mt.growing(2, 6, over=4, jitter=0.0)
    for name in KINDS:
        estimator = estimator_of(
            name, cf.problem(), schedule, truncation=6, particles=2
        )
        estimate = jax.jit(estimator.estimate)
        state = estimator.init(jax.random.key(0), THETA)
        steps = []
        for i in (0, 2, 9):
            _, state, info = estimate(jax.random.key(i), THETA, state, (), i)
            steps.append(int(info.inner_steps) / int(info.particles))
        np.testing.assert_allclose(np.array(steps) / steps[0], [1, 2, 3], err_msg=name)


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
