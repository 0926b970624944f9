"""Runs that go on from what a store holds."""

import jax
import numpy as np
import pytest

from l2o.meta_train.evaluation import Job, Protocol, Store, _runs, entrant, run_jobs
from l2o.tasks import task_specs

TASK = "quadratic10"
PROTOCOL = Protocol("mine", 1, 40, 2, 10, 2)


def test_more_seeds_go_on_from_those_that_are_there(tmp_path, monkeypatch):
    spec = task_specs(TASK)[TASK]
    store = Store(tmp_path, shipped=False)
    job = Job(entrant("sgd"), TASK, spec, (0.1, 0.3))
    one, three = PROTOCOL._replace(seeds=1), PROTOCOL._replace(seeds=3)
    (first,) = run_jobs([job._replace(rates=(0.3,))], one, store)
    ran = []
    original = _runs._run

    def counted(job, family, rates, seeds, protocol):
        ran.append((tuple(rates), seeds))
        return original(job, family, rates, seeds, protocol)

    monkeypatch.setattr(_runs, "_run", counted)
    gone_on = run_jobs([job], three, store)
    assert ran == [((0.1,), range(3)), ((0.3,), range(1, 3))]
    whole = run_jobs([job], three, None)
    for a, b in zip(gone_on, whole, strict=True):
        assert a.setting == b.setting and a.setting["seeds"] == 3
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a.curves, b.curves
        )
    loss = gone_on[1].curves["train"]["loss"]
    np.testing.assert_array_equal(loss[:1], first.curves["train"]["loss"])
    assert np.all(np.abs(loss[1:] - loss[0])[:, -1] > 1e-6)  # seeds differ
    # Results that came with the package are measured again.
    ran.clear()
    run_jobs([job], three, Store(tmp_path / "other", shipped=False))
    assert ran == [((0.1, 0.3), range(3))]
    # And what was run is found.
    ran.clear()
    assert run_jobs([job], three, store)[1].seconds == gone_on[1].seconds
    assert run_jobs([job._replace(rates=(0.3,))], one, store)[0].setting["seeds"] == 1
    assert ran == []


def test_a_trial_is_kept_before_the_next_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(_runs, "side_by_side", lambda: False)
    store = Store(tmp_path, shipped=False)
    job = Job(entrant("sgd"), TASK, task_specs(TASK)[TASK], (0.1, 0.3))
    original = store.put

    def stopped(result):
        if result.rate == 0.3:
            raise KeyboardInterrupt
        original(result)

    monkeypatch.setattr(store, "put", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], PROTOCOL, store)
    kept = store.get(_runs.key_of(_runs.setting_of(job, 0.1, PROTOCOL)))
    assert kept is not None and kept.rate == 0.1
