"""Evaluations: entrants, tuning, cache, boards, and the command."""

import dataclasses
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import l2o
from l2o.meta_train import Evaluation, evaluate, inner_init, inner_step
from l2o.meta_train.cli._evaluate import evaluate_command, report_command
from l2o.meta_train.evaluation import (
    Job,
    Protocol,
    Store,
    _runs,
    baselines,
    claim,
    entrant,
    leaderboard,
    load_board,
    run_jobs,
    save_board,
)
from l2o.meta_train.evaluation._baselines import half_decades
from l2o.meta_train.evaluation._board import best_trial
from l2o.meta_train.evaluation._entrants import of_optimizer
from l2o.meta_train.evaluation._scores import final
from l2o.tasks import TaskFamily, make_family, stateless

CONFIG = Evaluation(
    suite="quadratic10",
    steps=40,
    seeds=3,
    trials=3,
    eval_every=10,
    eval_batches=2,
    adam_horizon=2,
)
PROTOCOL = Protocol("mine", 1, 40, 2, 10, 2)
TASK = "quadratic10"


def _learned(rate):
    optimizer = l2o.learnable_sgd(learning_rate=rate)
    return optimizer, optimizer.init_theta(jax.random.key(0))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("evaluation") / "results", shipped=False)


@pytest.fixture(scope="module")
def board(store):
    entrants = [of_optimizer("learned", *_learned(0.9)), entrant("sgd")]
    return evaluate(
        CONFIG, own={"mine": optax.sgd(0.9)}, entrants=entrants, store=store
    )


def test_curves_are_those_of_a_plain_loop(board):
    family = make_family(TASK)
    k_config, k_init, k_steps, _ = jax.random.split(jax.random.key(1), 4)
    task = family.task(family.sample(k_config), family.data)
    adam = board.chosen("adam", TASK)
    for tx, result in (
        (optax.sgd(0.9), board.chosen("mine", TASK)),
        (optax.adam(adam.rate), adam),
    ):
        tx = optax.with_extra_args_support(tx)
        step = jax.jit(lambda state, key, tx=tx: inner_step(tx, task, state, key))
        state = inner_init(tx, task, k_init)
        losses = []
        for t in range(CONFIG.steps):
            if t % 10 == 0:
                losses.append(task.loss(state.params, (), k_init, 0.0)[0])
            state, *_ = step(state, jax.random.fold_in(k_steps, t))
        losses.append(task.loss(state.params, (), k_init, 0.0)[0])
        # Quadratic without noise: every evaluation batch has the same loss.
        for split in ("train", "outer_valid", "test"):
            curve = result.curves[split]["loss"][1]
            np.testing.assert_allclose(curve, losses, rtol=1e-4, atol=1e-7)


def test_the_same_optimizer_in_three_ways_has_the_same_curves(board):
    mine, learned = (board.chosen(x, TASK) for x in ("mine", "learned"))
    loss = mine.curves["train"]["loss"]
    np.testing.assert_allclose(learned.curves["train"]["loss"], loss, rtol=1e-5)
    assert board.contestants["learned"].learned
    assert not board.contestants["sgd"].learned


def test_the_trial_with_the_lowest_validation_loss_counts(board):
    trials = board.contestants["sgd"].trials[TASK]
    assert [x.rate for x in trials] == list(baselines()["sgd"].space[:3])
    losses = [np.mean(final(x.curves["outer_valid"]["loss"])) for x in trials]
    assert board.chosen("sgd", TASK) is trials[int(np.argmin(losses))]
    assert board.at_edge("sgd", TASK) == (
        board.chosen("sgd", TASK).rate in (min(_rates(trials)), max(_rates(trials)))
    )
    untuned = board._replace(tuning="none")
    assert untuned.chosen("sgd", TASK) is trials[0]


def _rates(trials):
    return [x.rate for x in trials]


def test_a_diverged_trial_is_not_chosen(board):
    trials = list(board.contestants["sgd"].trials[TASK])
    best = board.chosen("sgd", TASK)
    curves = {k: {"loss": v["loss"].copy()} for k, v in best.curves.items()}
    curves["outer_valid"]["loss"][1, -1] = np.nan
    broken = dataclasses.replace(best, curves=curves)
    trials[trials.index(best)] = broken
    sgd = board.contestants["sgd"]._replace(trials={TASK: trials})
    changed = board._replace(contestants={**board.contestants, "sgd": sgd})
    assert changed.chosen("sgd", TASK) is not broken


def test_a_trial_is_not_chosen_by_what_it_is_judged_by(board):
    trials = list(board.contestants["sgd"].trials[TASK])
    best = board.chosen("sgd", TASK)
    i = next(i for i, x in enumerate(trials) if x is not best)
    lower = {"loss": 0 * trials[i].curves["test"]["loss"]}
    for split in ("train", "test"):
        curves = {**trials[i].curves, split: lower}
        changed = [*trials]
        changed[i] = dataclasses.replace(trials[i], curves=curves)
        assert changed[best_trial(changed)] is best
    changed[i] = dataclasses.replace(
        trials[i], curves={**trials[i].curves, "outer_valid": lower}
    )
    assert best_trial(changed) == i


def test_one_rate_for_all_is_chosen_on_the_tuning_set(store):
    config = dataclasses.replace(
        CONFIG, tuning="set", tuning_set="quadratic10", optimizers=("sgd",)
    )
    chosen = evaluate(config, store=store)
    per_task = evaluate(dataclasses.replace(config, tuning="task"), store=store)
    # Tuned on the very task it is what tuning per task finds.
    assert chosen.contestants["sgd"].rate == per_task.chosen("sgd", TASK).rate
    assert chosen.chosen("sgd", TASK).rate == chosen.contestants["sgd"].rate


def test_adams_reference_is_one_and_its_long_runs_go_on_from_the_short(board):
    np.testing.assert_allclose(np.mean(board.scores("adam")), 1.0, atol=1e-6)
    long = board.long[TASK]
    assert len(long) == CONFIG.trials
    for short, far in zip(board.contestants["adam"].trials[TASK], long, strict=True):
        a, b = (x.curves["train"]["loss"] for x in (short, far))
        assert b.shape[1] == 2 * a.shape[1] - 1
        np.testing.assert_allclose(b[:, : a.shape[1]], a, rtol=1e-5)


def test_nothing_is_run_twice_and_what_is_missing_is(board, store, monkeypatch):
    from l2o.meta_train.evaluation import _runs

    ran = []
    original = _runs._run

    def counted(job, family, rates, seeds, protocol):
        ran.append((job.entrant.name, tuple(rates), protocol.steps))
        return original(job, family, rates, seeds, protocol)

    monkeypatch.setattr(_runs, "_run", counted)
    entrants = [of_optimizer("learned", *_learned(0.9)), entrant("sgd")]
    again = evaluate(CONFIG, entrants=entrants, store=store)
    assert ran == []
    for name in again.contestants:
        assert leaderboard(again) and again.scores(name) is not None
    # A transformation of one's own cannot be told from another.
    evaluate(CONFIG, own={"mine": optax.sgd(0.1)}, store=store)
    assert ran == [("mine", (None,), 40)]
    ran.clear()
    more = dataclasses.replace(CONFIG, trials=4)
    evaluate(more, entrants=[entrant("sgd")], store=store)
    adam = ("adam", (baselines()["adam"].space[3],))
    sgd = ("sgd", (baselines()["sgd"].space[3],))
    assert sorted(ran) == [(*adam, 40), (*adam, 80), (*sgd, 40)]
    ran.clear()
    other = of_optimizer("learned", *_learned(0.8))
    evaluate(CONFIG, entrants=[other], store=store)
    assert ran == [("learned", (None,), 40)]


def test_boards_are_saved_merged_and_refused(board, store, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    save_board(one, board, Store(one / "results", shipped=False))
    assert leaderboard(load_board([one])) == leaderboard(board)

    def save(changed):
        save_board(other, changed, Store(other / "results", shipped=False))

    def of_another(**changes):
        """The board as if its results were of another protocol."""

        def changed(trials):
            return {
                task: [
                    dataclasses.replace(x, setting={**x.setting, **changes})
                    for x in found
                ]
                for task, found in trials.items()
            }

        return board._replace(
            protocol=board.protocol._replace(**changes),
            contestants={
                name: x._replace(trials=changed(x.trials))
                for name, x in board.contestants.items()
            },
            long=changed(board.long),
        )

    lion = evaluate(CONFIG, entrants=[entrant("lion")], store=store)
    save(lion)
    merged = load_board([one, other])
    assert set(merged.contestants) == {"adam", "sgd", "mine", "learned", "lion"}

    save(of_another(eval_batches=3))
    with pytest.raises(ValueError, match="differ in eval batches, 2 and 3"):
        load_board([one, other])
    save(of_another(suite_version=7))
    with pytest.raises(ValueError, match="differ in suite version, 0 and 7"):
        load_board([one, other])
    imposter = evaluate(
        CONFIG, entrants=[of_optimizer("learned", *_learned(0.5))], store=store
    )
    save(imposter)
    with pytest.raises(ValueError, match="learned are two optimizers"):
        load_board([one, other])

    # Of another protocol than its results.
    save(board._replace(protocol=board.protocol._replace(suite_version=7)))
    with pytest.raises(ValueError, match="is of another setting"):
        load_board([other])

    next((one / "results").glob("*.json")).unlink()
    with pytest.raises(ValueError, match="lacks the result"):
        load_board([one])
    with pytest.raises(ValueError, match="holds no evaluation"):
        load_board([tmp_path])
    (one / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation.json is no l2o evaluation"):
        load_board([one])
    content = json.loads((other / "evaluation.json").read_text())
    less = {k: v for k, v in content.items() if k != "timings"}
    (other / "evaluation.json").write_text(json.dumps(less))
    with pytest.raises(ValueError, match="does not have the digest.*evaluate again"):
        load_board([other])
    (other / "evaluation.json").write_text(json.dumps({**content, "version": 9}))
    with pytest.raises(ValueError, match="version 9"):
        load_board([other])


def test_claims_come_with_a_p_value(board):
    found = claim(board, "mine", "learned")
    assert found == {"tasks": (0, 1), "improves": 0.5, "p": 1.0}


def test_families_of_ones_own_and_progress():
    task = stateless(
        init=lambda key: jnp.ones(2),
        batch=lambda key, split: (),
        loss=lambda x, key, batch: jnp.sum(x**2),
    )
    family = TaskFamily(lambda key: (), lambda config, data: task, name="mine")
    seen = []
    board = evaluate(
        CONFIG,
        own={"sgd": optax.sgd(0.1)},
        families=[family],
        on_progress=lambda *x: seen.append(x),
    )
    assert board.tasks == ("mine",)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "heldout/smal"}, "heldout/small"),
        ({"suite": "demo/heldout", "tasks": ("graphs",)}, "not in demo/heldout"),
        ({"steps": 30, "eval_every": 25}, "multiple of eval_every"),
        ({"trials": 0}, "trials must be positive"),
        ({"tuning": "set", "tuning_set": "nowhere"}, "tuning_set"),
        ({"tuning": "set", "tuning_set": "heldout/small"}, "Choose on others"),
        ({"learning_rates": (1.0,)}, "unknown option learning_rates"),
    ],
)
def test_a_bad_evaluation_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamm", "unknown optimizer 'adamm'; .*Did you mean .*adam.* \\./NAME"),
        ("adam+steps", "unknown schedule 'steps'; known: constant, cosine, linear"),
        ("lbfgs:0.1", "no rate to give"),
        ("prodigyy+cosine", "unknown optimizer"),
        ("muon:abc", r"muon:abc: 'abc' is no rate, expected a positive number"),
        ("muon:", "'' is no rate"),
        ("muon:-1", "'-1' is no rate"),
        ("adaptive_muon:nan", "'nan' is no rate"),
        ("muon+cosine:inf", "'inf' is no rate"),
        ("", "unknown optimizer ''"),
        ("rprop+cosine", "takes no schedule"),
        ("small_fc_digits+cosine", "needs no learning rate"),
    ],
)
def test_an_unknown_entrant_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        entrant(text)


def test_steps_of_a_suite_have_to_fit_the_points():
    config = dataclasses.replace(
        CONFIG, suite="demo/heldout", steps=None, eval_every=30
    )
    with pytest.raises(ValueError, match="500 steps of demo/heldout are no multiple"):
        evaluate(config)


def test_a_result_is_found_under_another_name(store):
    one, other = (of_optimizer(x, *_learned(0.7)) for x in ("one", "other"))
    evaluate(CONFIG, entrants=[one], store=store)
    board = evaluate(CONFIG, entrants=[other], store=store)
    assert board.chosen("other", TASK).entrant == "other"


def test_two_optimizers_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two optimizers are called adam"):
        evaluate(CONFIG, own={"adam": optax.sgd(0.1)}, entrants=[entrant("adam")])


def test_entrants_by_name():
    assert entrant("adamw+cosine").name == "adamw+cosine"
    assert entrant("adamw+cosine").identity == {
        "baseline": "adamw",
        "schedule": "cosine",
    }
    assert entrant("adam:3e-4").space == (3e-4,)
    assert entrant("small_fc_digits").trials(7) == (None,)
    assert entrant("small_fc_digits").card["optimizer"]["name"] == "small_fc"
    # The weights' own rate is what is tried first.
    assert entrant("normalized_mixed").trials(2) == (0.02, 0.0632)
    assert half_decades(1e-3)[:3] == (1e-3, 3.16e-3, 3.16e-4)
    # The default is tried first, however far from the centre.
    assert half_decades(1e-3, 10**-2.5)[0] == 1e-3
    assert len(set(half_decades(1e-3, 10**-2.5))) == 7


@pytest.mark.parametrize("wrapper", [lambda x: x, l2o.hypergradient])
def test_a_learned_optimizer_with_a_rate_is_tuned_in_it(tmp_path, wrapper):
    optimizer = wrapper(l2o.celo2_base(init="adam"))
    theta = optimizer.init_theta(jax.random.key(0))
    folder = l2o.save(tmp_path / "mine", optimizer, theta)
    made = entrant(str(folder))
    assert made.name == "mine" and made.space[0] == 1e-3
    ours = made.make(0.02, 10)
    exact = l2o.load(folder, learning_rate=0.02, num_steps=10)
    ends = []
    for tx in (ours, exact):
        params = {"w": jnp.ones((3, 2))}
        state = tx.init(params)
        for t in range(3):
            grads = {"w": jnp.full((3, 2), 0.3) * params["w"] ** t}
            updates, state = tx.update(grads, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
        ends.append(params["w"])
    np.testing.assert_allclose(*ends, rtol=1e-5)
    assert np.all(np.abs(ends[0] - 1) > 0.01)


def test_what_is_evaluated_may_be_other_than_the_parameters(store):
    made = entrant("schedule_free_sgd:0.5")
    family = make_family(TASK)
    job = Job(made, TASK, family, made.trials(1))
    (averaged,) = run_jobs([job], PROTOCOL, None)
    (raw,) = run_jobs([job._replace(entrant=made._replace(final=None))], PROTOCOL, None)
    a, b = (x.curves["train"]["loss"][:, -1] for x in (averaged, raw))
    assert np.all(np.abs(a - b) > 1e-3 * np.abs(a))


@pytest.mark.parametrize("name", ["normalized_mixed", "sophia"])
def test_side_by_side_and_one_by_one_give_the_same_curves(name, monkeypatch):
    made = entrant(name)
    jobs = [Job(made, TASK, make_family(TASK), made.trials(2))]
    both = []
    for vectorised in (False, True):
        monkeypatch.setattr(_runs, "side_by_side", lambda x=vectorised: x)
        results = run_jobs(jobs, PROTOCOL, None)
        both.append([x.curves["train"]["loss"] for x in results])
    np.testing.assert_allclose(*both, rtol=1e-4)
    assert np.all(np.abs(both[0][0] - both[0][1])[:, -1] > 0)  # rates differ


# All of them take a minute: every one is compiled.
REST = (pytest.mark.slow, pytest.mark.exhaustive)
EVERY = sorted(baselines())
FEW = {"adam", "lbfgs", "sam", "schedule_free_adamw"}


@pytest.mark.parametrize(
    "name",
    [x if x in FEW else pytest.param(x, marks=REST) for x in EVERY],
)
def test_every_baseline_learns_in_its_search_space(name):
    made = entrant(name)
    jobs = [Job(made, TASK, make_family(TASK), made.trials(7))]
    results = run_jobs(jobs, PROTOCOL, None, workers=1)
    gains = []
    for result in results:
        loss = result.curves["train"]["loss"]
        assert loss.shape == (2, 5)
        gains.append(np.mean(final(loss)) / np.mean(loss[:, 0]))
    assert np.nanmin(gains) < 0.9
    assert results[0].state_bytes >= 0


def test_the_command_from_weights_to_page(tmp_path, monkeypatch):
    from l2o.meta_train.cli import _evaluate as _command

    monkeypatch.setattr(_command, "behaviour_figures", lambda *_: [])
    folder = l2o.save(tmp_path / "mine", *_learned(0.5))
    console = Console(record=True, width=120)
    out = tmp_path / "out"
    config = dataclasses.replace(CONFIG, optimizers=(str(folder),), trials=1)
    path = evaluate_command(config, out, run=None, console=console)
    text = console.export_text()
    assert str(path.resolve()) in text and TASK in text and "mine" in text
    assert path.read_text().startswith("<!doctype html>")

    # The page again, from the folder alone.
    before = path.read_bytes()
    path.unlink()
    assert report_command([out], None, console=console) == out / "report.html"
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="neither a run"):
        report_command([tmp_path / "nowhere"], None, console=console)


@pytest.mark.slow
def test_a_live_page_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    records = [{"step": i, "family": "mlp", "meta_loss": 1 / i} for i in range(1, 9)]
    path = run / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:4]))
    command = [sys.executable, "-m", "l2o.meta_train", "report", str(run)]
    server = subprocess.Popen(
        [*command, "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        address = server.stdout.readline().split()[0]
        assert address.startswith("http://localhost:")

        def visit():
            with urllib.request.urlopen(address, timeout=60) as answer:
                return answer.read().decode()

        first = visit()
        assert 'http-equiv="refresh"' in first and "Meta-training" in first
        with path.open("a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records[4:]))
        assert visit() != first
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(address + "/etc/passwd", timeout=60)
        refused.value.close()
    finally:
        server.terminate()  # a shell in the background has it ignore SIGINT
        server.wait(timeout=60)
        server.stdout.close()
