"""Costs of tasks: counted, timed, remembered, and held to a budget."""

from l2o import tasks
from l2o.tasks import TaskSpec


def test_cost_is_counted_timed_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    small, large = (
        TaskSpec("image_mlp", {"datasets": ("digits",), "hidden": (width,)})
        for width in (8, 16)
    )
    assert tasks.remembered_cost(small) is None
    cost = tasks.spec_cost(small)
    assert cost.parameters == 64 * 8 + 8 + 8 * 10 + 10 and cost.seconds is None
    # Forward and back: six operations per weight and example, but for the first layer,
    # whose inputs need no gradient.
    assert 4 * 64 * cost.parameters < cost.flops < 8 * 64 * cost.parameters
    assert tasks.spec_cost(large).flops > 1.5 * cost.flops
    assert tasks.remembered_cost(small) == cost
    timed = tasks.spec_cost(small, measure=True)
    assert timed.seconds > 0 and timed[:3] == cost[:3]
    # What is remembered is used, and what is damaged found again.
    monkeypatch.setattr(tasks._cost, "step_cost", None)
    assert tasks.spec_cost(small, measure=True) == timed
    monkeypatch.undo()
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    for file in (tmp_path / "costs").iterdir():
        file.write_text("{")
    assert tasks.spec_cost(small) == cost


def test_a_budget_in_operations_refuses_what_costs_more(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    spec = TaskSpec("quadratic", {"dim": 1000})
    assert tasks.within(flops=1e7)(spec)
    assert tasks.within(flops=1e7, bytes=1e7)(spec)
    assert not tasks.within(flops=1e3)(spec)
    assert not tasks.within(bytes=1e3)(spec)
    assert not tasks.within(parameters=999)(spec)
    assert not tasks.within(seconds=0.0)(TaskSpec("quadratic", {"dim": 3}))


def test_a_bound_on_parameters_may_be_above_the_default():
    wide = TaskSpec("quadratic", {"dim": 20_000_000})
    assert not tasks.within()(wide)
    assert tasks.within(parameters=5e7)(wide)
