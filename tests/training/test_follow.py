"""`l2o evaluate --follow`: scores of a run's checkpoints from another process."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2o
from l2o.meta_train import Config, run
from l2o.meta_train._config import Following
from l2o.meta_train.cli._main import main
from l2o.meta_train.evaluation._follow import follow
from l2o.meta_train.training._checkpoints import steps
from l2o.tasks import TaskFamily, stateless

QUICK = Config(
    optimizer="learnable_sgdm",
    families=("quadratic10",),
    reparam_level="none",
    particles=3,
    truncation=5,
    episode_length=(5, 20),
    outer_steps=12,
    outer_lr=0.1,
    outer_warmup=2,
    checkpoint_every=4,
)
SHORT = Following(steps=20, seeds=2, eval_every=10, eval_batches=1)
LIMIT = 120  # seconds that a child process gets


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(QUICK, out)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def _lines(out):
    text = (out / "evaluations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _contents(out):
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_every_checkpoint_is_scored_and_the_best_kept(copy, capsys):
    before = _contents(copy)
    records = follow(copy, SHORT)
    assert [r["step"] for r in records] == [4, 8, 12]
    assert records == _lines(copy)
    assert all(list(r["tasks"]) == ["quadratic10"] for r in records)
    best = min(records, key=lambda r: r["score"])
    card = l2o.read_card(copy / "best")["card"]
    assert (card["outer_steps"], card["evaluation"]) == (best["step"], best)
    said = capsys.readouterr().out
    assert said.count("best so far") >= 1 and "the run is complete" in said
    # It left the run as it was, and went for what is new only, which is nothing.
    assert before.items() <= _contents(copy).items()
    assert sorted(p.name for p in copy.iterdir() if "best" in p.name) == ["best"]
    assert follow(copy, SHORT) == records == _lines(copy)


def test_the_best_is_a_theta_of_its_checkpoint(copy):
    follow(copy, SHORT)
    best = l2o.read_card(copy / "best")["card"]["outer_steps"]
    shutil.rmtree(copy / "frozen")
    for number in steps(copy / "checkpoints"):
        if number > best:
            shutil.rmtree(copy / "checkpoints" / str(number))
    shorter = dataclasses.replace(QUICK, outer_steps=max(best, 2))
    theta = run(shorter, copy, override=True).theta
    _, frozen = l2o.load_unbound(copy / "best")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, frozen, theta))


def _bowl(losses, normalize=None, counted=None):
    """x^2 / 2 from x = 1, the same task at every draw; the loss may be bent."""

    def task(config, data):
        if counted is not None:
            counted.append(1)
        rest = {} if normalize is None else {"normalize": normalize}
        return stateless(
            init=lambda key: jnp.ones(3),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: losses(jnp.mean(x**2) / 2 * 3),
            **rest,
        )

    return TaskFamily(lambda key: (), task, name="bowl")


def test_the_score_is_the_mean_of_the_curve_and_compiled_once(tmp_path):
    traces = []
    family = _bowl(lambda x: x, counted=traces)
    config = dataclasses.replace(QUICK, optimizer="learnable_sgd")
    run(config, tmp_path / "run", families=[family])
    traces.clear()
    records = follow(tmp_path / "run", SHORT, families=[family])
    assert len(records) == 3 and len(traces) <= 2
    _, theta = l2o.load_unbound(tmp_path / "run" / "frozen")
    # The gradient is x, so that x = (1 - lr)^t.
    rate = math.exp(theta["log_lr"])
    points = [1.5 * (1 - rate) ** (2 * t) for t in (10, 20)]
    np.testing.assert_allclose(records[-1]["score"], np.mean(points), rtol=1e-4)


@pytest.mark.exhaustive
def test_a_run_that_diverges_counts_as_the_bound_or_as_infinite(tmp_path):
    def bounded(loss):
        return jnp.clip(jnp.where(jnp.isnan(loss), 3.0, loss), 0.0, 3.0)

    good = _bowl(lambda x: x, bounded)
    run(QUICK, tmp_path / "run", families=[good])
    broken = _bowl(lambda x: x * jnp.nan, bounded)
    records = follow(tmp_path / "run", SHORT, families=[broken])
    assert [r["score"] for r in records] == [3.0] * 3
    (tmp_path / "run" / "evaluations.jsonl").unlink()
    shutil.rmtree(tmp_path / "run" / "best")
    unbounded = _bowl(lambda x: x * jnp.nan)
    records = follow(tmp_path / "run", SHORT, families=[unbounded])
    assert [r["score"] for r in records] == [None] * 3
    assert not (tmp_path / "run" / "best").exists()


def test_after_a_kill_it_goes_on(copy):
    whole = follow(copy, SHORT)
    path = copy / "evaluations.jsonl"
    lines = path.read_text().splitlines()
    # Killed while it wrote a line, and between the renames of `best`.
    path.write_text(lines[0] + "\n" + lines[1][:20])
    (copy / "best").rename(copy / "best.old")
    (copy / "best.new").mkdir()
    assert [(r["step"], r["score"]) for r in follow(copy, SHORT)] == [
        (r["step"], r["score"]) for r in whole
    ]
    assert sorted(p.name for p in copy.iterdir() if "best" in p.name) == ["best"]
    best = min(whole, key=lambda r: r["score"])["step"]
    assert l2o.read_card(copy / "best")["card"]["outer_steps"] == best


def test_a_checkpoint_that_cannot_be_read_is_left_out(copy, capsys):
    (copy / "checkpoints" / "8" / "state" / "manifest.ocdbt").unlink()
    records = follow(copy, SHORT, poll=0.01)
    assert [r["step"] for r in records] == [4, 12]
    assert "checkpoint 8 cannot be read" in capsys.readouterr().out


def test_ctrl_c_ends_it_cleanly(copy, capsys, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "outer_steps": 99}))

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert len(follow(copy, SHORT)) == 3
    assert "stopped" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_in_progress_is_followed_and_not_disturbed(tmp_path):
    command = [
        *(sys.executable, "-m", "l2o.meta_train", "meta-train", "--preset", "smoke"),
        *("--optimizer", "learnable_sgdm", "--families", "quadratic10"),
        *("--outer-steps", "160", "--checkpoint-every", "20", "--out"),
    ]
    subprocess.run([*command, str(tmp_path / "alone")], check=True, timeout=LIMIT)
    out = tmp_path / "run"
    process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    while not steps(out / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    records = follow(out, SHORT, poll=0.01)
    assert process.wait(timeout=LIMIT) == 0
    assert records[0]["step"] < 160 and records[-1]["step"] == 160
    weights = Path("frozen", "model.safetensors")
    assert (out / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 160
    assert not (out / "unreadable").exists()


@pytest.mark.exhaustive
def test_other_tasks_and_the_command_line(copy, capsys):
    line = f"evaluate --follow {copy} --families quadratic10 mlp16 --steps 10"
    options = "--seeds 1 --eval-every 10 --eval-batches 1"
    assert main([*line.split(), *options.split()]) == 0
    (record, *_) = _lines(copy)
    assert list(record["tasks"]) == ["quadratic10", "mlp16"]
    assert record["score"] == pytest.approx(np.mean(list(record["tasks"].values())))
    # Scores on other tasks cannot be compared.
    assert main(["evaluate", f"--follow={copy}"]) == 2
    assert "follow with the same options" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "--follow", "x", "--help"])
    assert done.value.code == 0
    assert "best checkpoint" in capsys.readouterr().out


def test_what_cannot_be_followed_says_why(tmp_path, copy):
    with pytest.raises(ValueError, match=r"holds no run: it lacks config\.json"):
        follow(tmp_path / "nowhere", SHORT)
    config = json.loads((copy / "config.json").read_text())
    own = {**config, "task_families": ["mine"]}
    (copy / "config.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=r"families of its own \(mine\).*--families"):
        follow(copy, SHORT)
    (copy / "config.json").write_text(json.dumps({**config, "optimizer": ""}))
    with pytest.raises(ValueError, match="no l2o factory makes"):
        follow(copy, SHORT)
    with pytest.raises(ValueError, match="must be a multiple of eval_every"):
        Following(steps=30)
    with pytest.raises(ValueError, match="Following.families: unknown task 'nope'"):
        Following(families=("nope",))
    with pytest.raises(
        ValueError, match="cartpole is held out .cartpole of heldout/small"
    ):
        Following(families=("cartpole",))
