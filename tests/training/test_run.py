"""The run loop: what it writes, how it resumes, how it refuses."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

import l2o
from l2o.meta_train import Config, Following, follow, presets, run
from l2o.meta_train.training._folder import claim, record_overrides
from l2o.tasks import TaskFamily, TaskSpec, quadratic, stateless

QUICK = Config(
    optimizer="learnable_sgdm",
    families=("quadratic10",),
    particles=3,
    truncation=5,
    episode_length=(5, 20),
    outer_steps=12,
    outer_warmup=2,
    checkpoint_every=4,
    keep_checkpoints=2,
)
COMMAND = [
    *(sys.executable, "-m", "l2o.meta_train", "meta-train", "--preset", "smoke"),
    *("--optimizer", "learnable_sgdm", "--families", "quadratic10"),
    *("--outer-steps", "240", "--checkpoint-every", "20"),
]
LIMIT = 120  # seconds that a child process gets


def _metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _deterministic(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "quick"
    seen = []
    result = run(QUICK, out, on_step=seen.append)
    return out, result, seen


def test_a_run_leaves_what_it_promises(finished):
    out, result, seen = finished
    assert result.completed and result.step == 12
    assert json.loads((out / "config.json").read_text())["outer_steps"] == 12
    records = _metrics(out)
    assert records == seen
    assert [r["step"] for r in records] == list(range(1, 13))
    assert all(np.isfinite(r["meta_loss"]) and r["inner_steps"] > 0 for r in records)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["12", "8"]
    optimizer, theta = l2o.load_unbound(out / "frozen")
    assert optimizer.name == "learnable_sgdm"
    assert jax.tree.all(jax.tree.map(jnp.array_equal, theta, result.theta))
    card = l2o.read_card(out / "frozen")["card"]
    assert card["outer_steps"] == 12
    assert card["inner_steps"] == sum(r["inner_steps"] for r in records)


def test_tensorboard_has_the_same_numbers(finished):
    out, _, seen = finished
    values = {}
    for path in (out / "tensorboard").iterdir():
        data = path.read_bytes()
        # The record format: length (8), its checksum (4), event, its checksum (4).
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
            data = data[16 + size :]
    for record in seen:
        expected = np.float32(record["meta_loss"])
        assert values["meta_loss", record["step"]] == expected


def test_a_finished_run_is_not_repeated(finished, capsys):
    out, result, _ = finished
    before = (out / "metrics.jsonl").read_text()
    again = run(QUICK, out)
    assert again.completed and again.step == 12
    assert (out / "metrics.jsonl").read_text() == before
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again.theta, result.theta))
    assert "resuming" in capsys.readouterr().out


def test_the_outcome_depends_on_seed_alone(finished, tmp_path):
    _, result, seen = finished
    records = []
    again = run(QUICK, tmp_path / "a", on_step=records.append)
    assert _deterministic(records) == _deterministic(seen)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again.theta, result.theta))
    other = run(dataclasses.replace(QUICK, seed=1), tmp_path / "b")
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, other.theta, result.theta))


def test_meta_training_learns():
    # Heavy-ball SGD from a hundredth of a good learning rate: the meta-loss must fall.
    config = dataclasses.replace(
        QUICK, outer_steps=150, outer_lr=0.1, particles=8, std=0.1, checkpoint_every=150
    )
    records = []
    optimizer = l2o.learnable_sgdm(learning_rate=0.003)
    result = run(
        config,
        "learns",
        optimizer=optimizer,
        families=[quadratic(4)],
        on_step=records.append,
    )
    losses = [r["meta_loss"] for r in records]
    assert np.mean(losses[-30:]) < 0.8 * np.mean(losses[:30])
    assert np.exp(result.theta["log_lr"]) > 0.01


def _child(out, **kwargs):
    return subprocess.Popen(
        [*COMMAND, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def _wait_for_checkpoint(process, out, number):
    deadline = time.monotonic() + LIMIT
    while not (out / "checkpoints" / str(number)).exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.02)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    whole = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "whole")],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert "frozen optimizer:" in whole.stdout

    cut = tmp_path / "cut"
    process = _child(cut)
    _wait_for_checkpoint(process, cut, 40)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "frozen").exists()
    # The kill may have cut the last line; a resumed run must cope with it.
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99')

    process = _child(cut)
    _wait_for_checkpoint(process, cut, 120)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert "resuming" in output and "stopped by a signal" in output
    assert "Traceback" not in output

    process = _child(cut)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and "resuming" in output

    weights = Path("frozen", "model.safetensors")
    assert (cut / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert _deterministic(_metrics(cut)) == _deterministic(_metrics(tmp_path / "whole"))


def test_another_configuration_is_refused_by_field(finished):
    out, *_ = finished
    changed = dataclasses.replace(QUICK, outer_lr=1e-4, checkpoint_every=3)
    with pytest.raises(ValueError, match=r"\n  outer_lr: 0\.003 -> 0\.0001\n--over"):
        run(changed, out)
    # How often checkpoints are written changes no number and may change.
    assert run(dataclasses.replace(QUICK, checkpoint_every=3), out).completed


def test_a_run_of_a_version_with_fewer_options_is_known_again(tmp_path):
    arguments = json.loads(json.dumps(dict(l2o.small_fc().arguments)))
    content = json.loads(json.dumps(dataclasses.asdict(Config())))
    content |= {"optimizer": "small_fc", "optimizer_options": arguments}
    older = {k: v for k, v in content.items() if k != "theta_average"}
    older["optimizer_options"] = {k: v for k, v in arguments.items() if k != "init"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    (tmp_path / "metrics.jsonl").touch()
    assert claim(tmp_path, content, override=False) == older
    assert record_overrides(tmp_path, content, older, 1, pytest.fail) == []
    changed = {**content, "optimizer_options": {**arguments, "init": "adam"}}
    with pytest.raises(ValueError, match=r"'init': 'random'.* -> .*'init': 'adam'"):
        claim(tmp_path, changed, override=False)
    with pytest.raises(ValueError, match=r"theta_average: None -> 0\.9"):
        claim(tmp_path, {**content, "theta_average": 0.9}, override=False)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and holds no run"):
        run(QUICK, tmp_path)


def test_a_corrupted_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="it is no JSON"):
        run(QUICK, tmp_path)


def test_an_unwritable_folder_is_reported_before_anything_else(tmp_path, monkeypatch):
    # A file where the folder should be stops even root, whom permissions do not.
    (tmp_path / "file").touch()
    monkeypatch.setattr(l2o.meta_train.training._loop, "_compile", None)
    with pytest.raises(OSError, match="file"):
        run(QUICK, tmp_path / "file" / "run")


def test_a_full_disk_is_reported_before_anything_else(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(l2o.meta_train.training._loop, "_compile", None)
    with pytest.raises(OSError, match=r"MiB free; 3 more checkpoints need"):
        run(QUICK, tmp_path)


def test_a_run_that_never_started_may_be_replaced(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="MiB free"):
            run(QUICK, tmp_path)
    assert run(dataclasses.replace(QUICK, seed=3), tmp_path).completed


def test_a_checkpoint_of_another_state_is_refused(finished, tmp_path):
    out, *_ = finished
    theirs = tmp_path / "run"
    run(dataclasses.replace(QUICK, optimizer="learnable_adam"), theirs)
    (theirs / "config.json").write_bytes((out / "config.json").read_bytes())
    with pytest.raises(ValueError, match="another version or configuration"):
        run(QUICK, theirs)


def _broken_family():
    """Every loss is NaN."""
    task = stateless(
        init=lambda key: jnp.ones(2),
        batch=lambda key, split: (),
        loss=lambda x, key, batch: jnp.sum(x) * jnp.nan,
    )
    return TaskFamily(lambda key: (), lambda config, data: task, name="broken")


def test_non_finite_meta_losses_are_counted_and_survived():
    result = run(QUICK, "nan", families=[_broken_family()])
    assert result.completed
    assert all(np.isfinite(x) for x in jax.tree.leaves(result.theta))
    records = _metrics(Path("nan"))
    assert [r["nonfinite"] for r in records] == [3] * 12
    assert l2o.read_card("nan/frozen")["card"]["nonfinite_pairs"] == 36


def test_a_non_finite_meta_gradient_leaves_theta_alone():
    from l2o.meta_train import Info, MetaGradient, Outer, make_outer_step

    def estimate(key, theta, state, data, step):
        zero = jnp.int32(0)
        info = Info(jnp.float32(0), zero, zero, zero, jnp.int32(1))
        return {"a": jnp.where(state == 1, jnp.nan, 1.0)}, state + 1, info

    estimator = MetaGradient(lambda key, theta: jnp.int32(0), estimate)
    tx = optax.adam(0.1)
    step = jax.jit(make_outer_step(estimator, tx))
    theta = {"a": jnp.float32(1)}
    outer = Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(0))
    worker = jnp.int32(0)
    values, skipped = [], []
    for _ in range(3):
        outer, worker, info = step(outer, worker, ())
        values.append(float(outer.theta["a"]))
        skipped.append(bool(info.skipped))
    assert skipped == [False, True, False]
    np.testing.assert_allclose(values, [0.9, 0.9, 0.8], rtol=1e-5)


def test_an_average_of_theta_follows_it():
    from l2o.meta_train import Info, MetaGradient, Outer, make_outer_step

    def estimate(key, theta, state, data, step):
        zero = jnp.int32(0)
        info = Info(jnp.float32(0), zero, zero, zero, jnp.int32(1))
        return {"a": jnp.where(state == 4, jnp.nan, 1.0)}, state + 1, info

    estimator = MetaGradient(lambda key, theta: jnp.int32(0), estimate)
    tx = optax.sgd(1.0)
    step = jax.jit(make_outer_step(estimator, tx, 0.5))
    theta = {"a": jnp.float32(3)}
    outer = Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(0), theta)
    worker, mean = jnp.int32(0), 3.0
    for t, value in enumerate([2, 1, 0, -1, -1, -2, -3, -4, -5, -6, -7, -8]):
        outer, worker, _ = step(outer, worker, ())
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * value
        assert float(outer.theta["a"]) == value
        np.testing.assert_allclose(outer.average["a"], mean, rtol=1e-5)


def test_the_average_is_what_is_exported_and_scored():
    config = dataclasses.replace(QUICK, reparam_level="none", checkpoint_every=12)
    averaging = dataclasses.replace(config, theta_average=0.9)
    plain, averaged = run(config, "plain"), run(averaging, "averaged")
    assert _deterministic(_metrics(Path("plain"))) == _deterministic(
        _metrics(Path("averaged"))
    )
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, plain.theta, averaged.theta))
    scoring = Following(steps=20, seeds=1, eval_every=10, eval_batches=1)
    follow("averaged", scoring)
    for folder in ("averaged/frozen", "averaged/best"):
        _, theta = l2o.load_unbound(folder)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, theta, averaged.theta))


def test_an_average_has_a_decay():
    with pytest.raises(ValueError, match="theta_average must be between 0 and 1"):
        dataclasses.replace(QUICK, theta_average=1.0)


def test_several_families_are_drawn_equally_often():
    config = dataclasses.replace(QUICK, outer_steps=60, checkpoint_every=60)
    run(config, "mixture", families=[quadratic(2), quadratic(3)])
    names = [r["family"] for r in _metrics(Path("mixture"))]
    assert 18 < names.count("quadratic2") < 42
    assert set(names) == {"quadratic2", "quadratic3"}


def test_a_run_in_a_thread_needs_no_signals():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, QUICK, Path("thread").resolve()).result().completed


@pytest.mark.parametrize(
    "bad, error, match",
    [
        (
            {"outer_stepz": 3},
            ValueError,
            "unknown option outer_stepz.*known: optimizer",
        ),
        ({"outer_steps": "3"}, TypeError, "outer_steps must be int, not '3'"),
        ({"outer_lr": None}, TypeError, "outer_lr must be float"),
        ({"episode_length": (5,)}, TypeError, "episode_length must be"),
        ({"optimizer": "smallfc"}, ValueError, "known: .*small_fc"),
        ({"optimizer_options": {"width": 3}}, ValueError, "known: .*hidden_size"),
        ({"families": ("mnist",)}, ValueError, "families: unknown task 'mnist'"),
        ({"families": ("train/broad",)}, ValueError, "set reparam_level to 'none'"),
        ({"families": ()}, ValueError, "names no task family"),
        (
            {"families": ("mlp16", "graphs")},
            ValueError,
            r"graphs is held out \(graphs of heldout/small\): .* by it\. Take others",
        ),
        ({"episode_length": (50, 5)}, ValueError, "0 < low <= high"),
        ({"reparam_level": "layer"}, TypeError, "reparam_level must be"),
        ({"outer_warmup": 10**6}, ValueError, "outer_warmup must be from 0"),
    ],
)
def test_bad_configuration(bad, error, match):
    with pytest.raises(error, match=match):
        Config(**bad)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"estimator_options": {"foo": 1}}, "unknown option foo of the estimator pes"),
        ({"outer_optimizer": "adm"}, "unknown outer optimizer 'adm'"),
    ],
)
def test_what_an_estimator_rejects_ends_a_run_before_anything_is_written(
    bad, match, tmp_path
):
    with pytest.raises(ValueError, match=match):
        run(Config(**bad), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_families_may_be_asked_for():
    config = Config(families=("conv",), allow_heldout=True)
    assert config.allow_heldout and not Config().allow_heldout


def test_presets():
    assert set(presets.names()) >= {"demo", "smoke"}
    for name in presets.names():
        assert isinstance(presets.load(name).meta_train, Config)
        assert presets.summary(name).endswith(".")
    with pytest.raises(ValueError, match="unknown preset 'nope'; known: .*demo"):
        presets.load("nope")


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_run_gives_the_signal_handlers_back(handler):
    during = []
    old = signal.signal(signal.SIGINT, handler)
    try:
        run(QUICK, "run", on_step=lambda _: during.append(signal.getsignal(2)))
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, old)
    # An ignored signal stays ignored; otherwise ours was in its place.
    assert (during[0] == handler) == (handler == signal.SIG_IGN)


@pytest.mark.exhaustive
def test_celo_is_trained_in_two_phases(tmp_path):
    options = {"lstm_hidden_size": 3, "hidden_size": 2, "hidden_layers": 1}
    first = dataclasses.replace(
        QUICK,
        optimizer="celo",
        optimizer_options={**options, "train_phase": 1},
        particles=1,
        outer_steps=2,
        outer_warmup=0,
    )
    drawn = l2o.make("celo", **first.optimizer_options)
    rule = run(first, tmp_path / "rule")
    second = dataclasses.replace(
        first,
        optimizer_options={**options, "train_phase": 2},
        start_from=str(tmp_path / "rule" / "frozen"),
    )
    both = run(second, tmp_path / "both")
    schedule = set(rule.theta) - {"bank"}
    assert set(drawn.frozen) == schedule
    untouched = jax.tree.map(jnp.array_equal, rule.theta, both.theta)
    for part, same in untouched.items():
        assert jax.tree.all(same) == (part == "bank"), part
    # `controls` has no effect with one network, but phase 2 perturbs it.
    key = jax.random.split(jax.random.key(first.seed), 3)[0]
    start = drawn.init_theta(key)
    assert not jnp.array_equal(start["bank"]["w0"], rule.theta["bank"]["w0"])
    for part in schedule:
        assert jax.tree.all(
            jax.tree.map(jnp.array_equal, start[part], rule.theta[part])
        )
    # Resumed when the folder it started from is gone, it is still complete.
    (tmp_path / "rule").rename(tmp_path / "moved")
    assert run(second, tmp_path / "both").completed


def test_weights_to_start_from_must_fit_and_exist(tmp_path):
    missing = dataclasses.replace(QUICK, start_from="nowhere")
    with pytest.raises(FileNotFoundError, match="unknown optimizer 'nowhere'; known: "):
        run(missing, tmp_path / "run")
    other = l2o.learnable_sgd()
    l2o.save(tmp_path / "other", other, other.init_theta(jax.random.key(0)))
    unfit = dataclasses.replace(QUICK, start_from=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="does not fit learnable_sgdm"):
        run(unfit, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_tasks_of_a_file_is_held_to_them(tmp_path):
    file = tmp_path / "own.json"
    spec = TaskSpec("quadratic", {"dim": 2}, label="mine")
    file.write_text(json.dumps([spec.to_dict()]))
    config = Config(
        optimizer="learnable_sgd",
        families=(str(file),),
        particles=1,
        truncation=2,
        episode_length=(2, 2),
        outer_steps=2,
        outer_warmup=0,
    )
    result = run(config, tmp_path / "run")
    card = l2o.read_card(result.frozen)["card"]
    assert card["task_families"] == ["mine/reparam-global"]
    assert card["task_specs"] == [spec.to_dict()]
    file.write_text(json.dumps([{**spec.to_dict(), "options": {"dim": 3}}]))
    with pytest.raises(ValueError, match="task_digests cannot change in a run"):
        run(config, tmp_path / "run")
