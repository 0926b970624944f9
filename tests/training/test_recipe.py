"""Runs of every estimator, objective, outer optimizer and population, by `Config`."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.meta_train import Config, Following, follow, outer_optimizer, run
from l2o.meta_train.training._recipe import ESTIMATORS, check_recipe, make_recipe
from l2o.tasks import quadratic

QUICK = Config(
    optimizer="learnable_sgdm",
    families=("quadratic10",),
    reparam_level="none",
    episode_length=(4, 8),
    particles=3,
    truncation=4,
    outer_steps=4,
    outer_warmup=0,
    checkpoint_every=2,
)


def _quick(**changes):
    return dataclasses.replace(QUICK, **changes)


def _records(out):
    return [
        json.loads(x) for x in (Path(out) / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_config_leaves_the_number_of_devices_open():
    """The command line makes one per core when it knows how many particles it has."""
    code = f"""
import jax
from l2o.meta_train import Config
from l2o.meta_train.training._recipe import check_recipe
for i, name in enumerate({list(ESTIMATORS)}):
    options = {{"period": 50}} if name == "gpes" else {{}}
    check_recipe(Config(estimator=name, estimator_options=options))
    jax.config.update("jax_num_cpu_devices", i + 1)  # fails where JAX was used
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


FEW = ("pes",)  # `test_bookkeeping` has their states


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FEW else [pytest.mark.exhaustive])
        for name in ESTIMATORS
    ],
)
def test_every_estimator_trains_and_resumes(name, tmp_path):
    options = {"period": 8} if name == "gpes" else {}
    config = _quick(estimator=name, estimator_options=options, outer_steps=6)
    whole = run(config, tmp_path / "whole")
    assert whole.completed
    assert all(np.isfinite(r["meta_loss"]) for r in _records(tmp_path / "whole"))
    start = l2o.learnable_sgdm().init_theta(jax.random.key(0))
    for a, b in zip(jax.tree.leaves(whole.theta), jax.tree.leaves(start)):
        assert a != b

    class Killed(Exception):
        pass

    def killed(record):
        if record["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "cut", on_step=killed)
    resumed = run(config, tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole.theta), jax.tree.leaves(resumed.theta)):
        assert a == b


def test_several_families_and_windows_per_step(tmp_path):
    config = _quick(families_per_step="all", windows_per_step=2, episode_length=(8, 8))
    families = [quadratic(2), quadratic(3)]
    result = run(config, tmp_path, families=families)
    assert result.completed
    records = _records(tmp_path)
    assert {r["family"] for r in records} == {"all"}
    # 2 families x 2 windows x 3 pairs x 2 runs x 4 steps; the first are shortened.
    assert records[-1]["inner_steps"] <= 2 * 2 * 3 * 2 * 4
    assert records[-1]["inner_steps"] > 2 * 3 * 2 * 4


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"objective_maximum": 3.0}, 3.0),
        ({"objective_maximum": 3.0, "objective_log": True}, math.log(3)),
        ({"objective_log": True}, math.log(1000)),
    ],
)
def test_the_objective_is_handed_on(more, expected, tmp_path):
    # On outer_valid batches after each update the loss of a run that diverges is cut.
    config = _quick(
        optimizer_options={"learning_rate": 100.0},
        objective_split="outer_valid",
        objective_over="telescoping",
        objective_samples=2,
        **more,
    )
    run(config, tmp_path)
    assert _records(tmp_path)[0]["meta_loss"] == pytest.approx(expected)


def test_lengths_that_grow(tmp_path):
    config = _quick(
        estimator="full_es",
        episode_length=(16, 16),
        episode_length_start=(2, 2),
        episode_growth=4,
        outer_steps=6,
    )
    run(config, tmp_path)
    per_run = [r["inner_steps"] / 6 for r in _records(tmp_path)]
    assert per_run == [2, 5, 9, 12, 16, 16]


def test_outer_optimizers():
    parameters = {"w": jnp.array([1.0, -2.0])}
    for name, options in (("adamw", {"weight_decay": 0.5}), ("lion", {}), ("sgd", {})):
        tx = outer_optimizer(
            0.1, warmup=3, steps=10, clip=1e9, name=name, options=options
        )
        schedule = optax.warmup_cosine_decay_schedule(0, 0.1, 3, 10, 0.01)
        plain = getattr(optax, name)(schedule, **options)
        gradient = {"w": jnp.array([3.0, 1.0])}
        state, plain_state = tx.init(parameters), plain.init(parameters)
        for _ in range(12):
            update, state = tx.update(gradient, state, parameters)
            expected, plain_state = plain.update(gradient, plain_state, parameters)
            np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-5)
    tx = outer_optimizer(0.1, warmup=2, steps=2, clip=1.0, name="sgd")
    state = tx.init(parameters)
    for rate in (0, 0.05, 0.1, 0.01, 0.01):  # no cosine between
        update, state = tx.update({"w": jnp.array([1.0, 0.0])}, state, parameters)
        np.testing.assert_allclose(update["w"][0], -rate, rtol=1e-5)
    with pytest.raises(
        ValueError, match="unknown outer optimizer 'adm'; known: .*adam"
    ):
        check_recipe(Config(outer_optimizer="adm"))
    with pytest.raises(ValueError, match="unknown option decay of adamw; known: b1"):
        check_recipe(Config(outer_optimizer="adamw", outer_options={"decay": 0.1}))


def test_other_outer_numbers_are_no_other_program():
    optimizer, families = l2o.learnable_sgdm(), [quadratic(2)]

    def lowered(**changes):
        recipe = make_recipe(_quick(**changes), optimizer, families)
        outer, (worker,) = recipe.state
        step = jax.jit(recipe.parts[0].step)
        return step.lower(outer, worker, (), recipe.numbers).as_text()

    text = lowered()
    changes = {"outer_lr": 0.7, "outer_warmup": 2, "outer_steps": 70, "outer_clip": 0.3}
    assert lowered(**changes) == text
    assert lowered(population=3) == lowered(population=3, **changes)
    assert lowered(truncation=2) != text


def test_frozen_parts_stay_even_under_weight_decay(tmp_path):
    config = _quick(
        optimizer="learnable_adam",
        outer_optimizer="adamw",
        outer_options={"weight_decay": 0.5},
        outer_lr=0.1,
    )
    free = run(config, tmp_path / "free").theta
    part = sorted(free)[0]
    held = run(dataclasses.replace(config, frozen=(part,)), tmp_path / "held").theta
    start = l2o.learnable_adam().init_theta(jax.random.key(0))
    assert held[part] == start[part] != free[part]
    assert all(held[name] != start[name] for name in held if name != part)
    with pytest.raises(ValueError, match="no part 'lr'; its parts are .*log_"):
        run(_quick(frozen=("lr",)), tmp_path / "wrong")


def test_a_population_is_trained_followed_and_resumed(tmp_path):
    config = _quick(
        population=4,
        population_range=(1e-3, 10.0),
        exchange_every=3,
        outer_steps=8,
        outer_lr=0.1,
    )
    whole = run(config, tmp_path / "whole")
    records = _records(tmp_path / "whole")
    assert all(len(r["member_meta_loss"]) == 4 for r in records)
    assert records[0]["meta_loss"] == pytest.approx(
        np.mean(records[0]["member_meta_loss"]), rel=1e-5
    )
    assert jax.tree.map(jnp.shape, whole.theta) == jax.tree.map(
        jnp.shape, l2o.learnable_sgdm().init_theta(jax.random.key(0))
    )

    class Killed(Exception):
        pass

    def killed(record):
        if record["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "cut", on_step=killed)
    resumed = run(config, tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole.theta), jax.tree.leaves(resumed.theta)):
        assert a == b
    scores = follow(tmp_path / "whole", Following(steps=10, seeds=2, eval_every=5))
    assert {r["step"] for r in scores} == {4, 6, 8}
    _, theta = l2o.load_unbound(tmp_path / "whole" / "best")
    best = min(scores, key=lambda r: r["score"])["step"]
    if best == 8:
        assert jax.tree.map(float, theta) == jax.tree.map(float, whole.theta)


def test_members_begin_apart_and_learn_at_their_own_rates():
    config = _quick(population=3, population_range=(0.1, 10.0))
    networks = l2o.make("mlp", hidden_size=2, hidden_layers=1)
    population, _ = make_recipe(config, networks, [quadratic(2)]).state
    weights = jax.tree.leaves(population.outer.theta)
    assert any(not np.allclose(w[0], w[1]) for w in weights)

    config = dataclasses.replace(config, particles=30)
    recipe = make_recipe(config, l2o.learnable_sgdm(), [quadratic(2)])
    population, (worker,) = recipe.state
    np.testing.assert_allclose(
        population.hypers["outer_lr_factor"], [0.1, 1, 10], rtol=1e-5
    )
    step = jax.jit(recipe.parts[0].step)
    after, _, _ = step(population, worker, (), recipe.numbers)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b), after.outer.theta, population.outer.theta
    )
    # Adam's first step has the size of the learning rate in every coordinate.
    for steps in jax.tree.leaves(moved):
        np.testing.assert_allclose(steps / steps[0], [1, 10, 100], rtol=0.05)


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"estimator": "tes"}, "unknown estimator 'tes'; known: pes, nres"),
        (
            {"estimator_options": {"carry": "x"}},
            "carry of the estimator pes; known: clip",
        ),
        (
            {"estimator_options": {"std": 1.0}},
            "unknown option std of the estimator pes",
        ),
        ({"estimator": "gpes"}, "gpes needs estimator_options period"),
        ({"std": 0.0}, "std must be positive"),
        ({"truncation": 0}, "truncation must be positive"),
        ({"objective_over": "min"}, "use an estimator of full unrolls"),
        ({"objective_samples": 4}, "samples needs a split"),
        ({"episode_length_start": (5, 3)}, "episode_length_start must be 0 < low"),
        ({"episode_length_start": (1, 3)}, "needs over >= 1"),
        ({"population_range": (0.0, 3.0)}, "population_range must be 0 < low"),
        ({"rate_range": (3.0, 0.3)}, "rate_range must be 0 < low"),
        ({"windows_per_step": 0}, "windows_per_step must be positive"),
    ],
)
def test_bad_configurations_fail_at_once(bad, match):
    with pytest.raises(ValueError, match=match):
        check_recipe(_quick(**bad))
