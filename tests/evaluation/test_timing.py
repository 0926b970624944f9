"""Timings of updates: who is timed, and what is remembered."""

import jax.numpy as jnp
import optax
import pytest

from l2o.meta_train.evaluation import entrant
from l2o.meta_train.evaluation._entrants import of_transformation
from l2o.meta_train.evaluation._timing import (
    Timing,
    read_timings,
    time_updates,
    timing_key,
    write_timings,
)

PARAMS = {"w": jnp.ones((8, 4)), "b": jnp.zeros(3)}


def test_all_are_timed_but_those_that_need_more_than_a_gradient():
    names = ("adam", "polyak_sgd", "lbfgs", "sam")
    found = time_updates([entrant(name) for name in names], PARAMS, steps=4)
    assert set(found) == {"adam", "polyak_sgd"}
    for timing in found.values():
        assert 0 < timing.low <= timing.ratio <= timing.high
        assert (timing.n, timing.parameters) == (4, 35)


def test_timings_are_added_to_a_folder(tmp_path):
    assert read_timings(None) == read_timings(tmp_path / "none")
    one, other = Timing(1.0, 0.9, 1.1, 4, 35), Timing(2.0, 1.9, 2.1, 4, 35)
    write_timings(tmp_path / "new", {"a": one})
    write_timings(tmp_path / "new", {"b": other})
    found = read_timings(tmp_path / "new")
    assert found["a"] == one and found["b"] == other


def test_keys_tell_optimizers_and_models_apart_but_not_ones_own():
    adam = entrant("adam")
    keys = {timing_key(adam, 35), timing_key(adam, 36), timing_key(entrant("sgd"), 35)}
    assert len(keys) == 3
    assert timing_key(of_transformation("mine", optax.sgd(0.1)), 35) is None


@pytest.mark.parametrize("name", ["adamw+cosine", "muon", "schedule_free_adamw"])
def test_rates_and_schedules_are_no_obstacle(name):
    assert time_updates([entrant(name)], PARAMS, steps=2)[name].n == 2
