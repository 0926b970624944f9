"""What becomes of a run whose checkpoints, configuration, losses or disk go wrong."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

import l2o
from l2o.meta_train import Config, Outer, run
from l2o.meta_train._config import RESUMING
from l2o.meta_train.training._checkpoints import (
    Checkpoints,
    attempt,
    read,
    restore,
    steps,
)

QUICK = Config(
    optimizer="learnable_sgdm",
    families=("quadratic10",),
    reparam_level="none",
    particles=3,
    truncation=5,
    episode_length=(5, 20),
    outer_steps=12,
    outer_warmup=2,
    checkpoint_every=4,
    keep_checkpoints=3,
)
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


def _files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _same(a, b):
    """Whether two runs ended alike, bit for bit, but for timings."""
    weights = Path("frozen", "model.safetensors")
    records = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (out / "metrics.jsonl").read_text().splitlines()
        ]
        for out in (a, b)
    ]
    assert len(records[0]) == 12
    return (a / weights).read_bytes() == (b / weights).read_bytes() and (
        records[0] == records[1]
    )


def _damage(step, kind):
    record = step / "record" / "metadata"
    if kind == "truncated":
        for path in (step / "state" / "d").iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "missing":
        (step / "state" / "manifest.ocdbt").unlink()
    elif kind == "tree":
        (step / "state" / "_METADATA").write_text("{}")
    elif kind == "state":
        shutil.rmtree(step / "state")
    elif kind == "record":
        record.unlink()
    elif kind == "empty":
        shutil.rmtree(step)
        step.mkdir()
    elif kind == "counters":
        text = record.read_text()
        assert '"nonfinite": 0' in text
        record.write_text(text.replace('"nonfinite": 0', '"nonfinite": 8'))
    else:
        record.write_text(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("record", "counters"),
        # The first two damage two at once in the next test but one.
        *(
            pytest.param(x, marks=pytest.mark.exhaustive)
            for x in (
                *("truncated", "missing", "empty", "state", "tree"),
                *("[]", '{"digest": 0}', "[" * 10**5),
            )
        ),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kind, whole, copy, capsys):
    _damage(copy / "checkpoints" / "12", kind)
    shutil.rmtree(copy / "frozen")
    result = run(QUICK, copy, console=Console(width=1000))
    said, noise = capsys.readouterr()
    (told,) = [line for line in said.splitlines() if "12 cannot be read (" in line]
    assert not noise and not any(x in told for x in ("orbax", "tensorstore", "Errno"))
    assert "using checkpoint 8 instead" in said and "at outer step 8" in said
    assert result.completed and _same(whole, copy)
    assert steps(copy / "checkpoints") == [4, 8, 12]
    assert (copy / "unreadable" / "12").is_dir()
    # What was saved in its place is whole.
    run(QUICK, copy, console=Console(width=1000))
    assert "at outer step 12" in capsys.readouterr().out


OLD = Path(__file__).parent / "run_by_orbax_manager"  # QUICK, cut after 8 steps


def test_a_run_whose_checkpoints_orbax_managed_is_resumed_bit_for_bit(tmp_path, capsys):
    old, new = (Path(shutil.copytree(OLD, tmp_path / name)) for name in ("old", "new"))
    record = json.loads((OLD / "checkpoints/8/record/metadata").read_text())
    assert "processes" not in record and None not in record["leaves"].values()
    # The same state, saved by this version: read without a template, by orbax alone.
    names = dict.fromkeys(record["leaves"], ocp.RestoreArgs(np.ndarray))
    state = ocp.PyTreeCheckpointHandler().restore(
        OLD / "checkpoints/8/state", args=ocp.args.PyTreeRestore(restore_args=names)
    )
    shutil.rmtree(new / "checkpoints")
    checkpoints = Checkpoints(new / "checkpoints", keep=3)
    checkpoints.save(8, jax.tree.map(jnp.asarray, state), record["counters"])
    checkpoints.wait()
    checkpoints.close()
    for out in (old, new):
        assert run(QUICK, out, console=Console(width=1000)).completed
    assert capsys.readouterr().out.count("at outer step 8") == 2
    assert _same(old, new) and not (old / "unreadable").exists()


def test_two_damaged_checkpoints_fall_back_by_two(whole, copy, capsys):
    for number, kind in ((12, "missing"), (8, "truncated")):
        _damage(copy / "checkpoints" / str(number), kind)
    run(QUICK, copy, console=Console(width=1000))
    said = capsys.readouterr().out
    assert said.count("using checkpoint 4 instead") == 2
    assert _same(whole, copy)
    assert sorted(p.name for p in (copy / "unreadable").iterdir()) == ["12", "8"]


def test_without_a_readable_checkpoint_nothing_is_touched(copy):
    for number in (4, 8, 12):
        _damage(copy / "checkpoints" / str(number), "missing")
    before = {p: p.read_bytes() for p in _files(copy)}
    with pytest.raises(
        ValueError, match=r"(?s)no checkpoint .*12: .*8: .*4: .*put back"
    ):
        run(QUICK, copy)
    assert {p: p.read_bytes() for p in _files(copy)} == before


def _state():
    return {
        "matrix": jax.random.normal(jax.random.key(0), (40, 30)),
        "key": jax.random.key(1),
        "half": jnp.arange(7, dtype=jnp.bfloat16),
        "count": jnp.int32(3),
        "nothing": jnp.zeros((0, 2)),
    }


def _equal(a, b):
    raw = [
        x if x.dtype != jax.random.key(0).dtype else jax.random.key_data(x)
        for x in (*jax.tree.leaves(a), *jax.tree.leaves(b))
    ]
    half = len(raw) // 2
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(raw[:half], raw[half:])
    )


def _save(folder, numbers, **options):
    checkpoints = Checkpoints(folder, **{"keep": 3, **options})
    for number in numbers:
        state = {**_state(), "count": jnp.int32(number)}
        checkpoints.save(number, state, {"seconds": number / 7})
    checkpoints.wait()
    checkpoints.close()


def test_a_flipped_bit_gives_exact_data_or_falls_back(tmp_path):
    folder = tmp_path / "checkpoints"
    _save(folder, [1, 2])
    rng = np.random.default_rng(0)
    files = sorted(_files(folder / "2"), key=lambda p: p.stat().st_size)[-8:]
    outcomes = []
    for flip in range(12):
        path = files[flip % len(files)]
        original = path.read_bytes()
        data = bytearray(original)
        bit = int(rng.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        found = attempt(folder, 2, _state())
        if isinstance(found, str):
            outcomes.append("refused")
        else:
            state, counters = found
            assert _equal(state, {**_state(), "count": jnp.int32(2)}), (path, bit)
            assert counters == {"seconds": 2 / 7}
            outcomes.append("exact")
        path.write_bytes(original)
    assert outcomes.count("refused") > 2
    # And so does `restore`, which uses `read`.
    (data,) = {max(_files(folder / "2"), key=lambda p: p.stat().st_size)}
    data.write_bytes(data.read_bytes()[::-1])
    said = []
    step, state, counters = restore(
        folder, _state(), aside=tmp_path / "aside", report=said.append
    )
    assert (step, int(state["count"]), counters) == (1, 1, {"seconds": 1 / 7})
    assert len(said) == 1


def test_only_late_answers_of_a_failed_save_are_silent(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    _save(tmp_path / "c", [1, 2])
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(text))
        for text in ("Event loop is closed", "another")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert heard == [other]


def test_a_part_of_a_state_is_read_alone(tmp_path):
    _save(tmp_path / "c", [1])
    before = {p: p.stat().st_mtime_ns for p in _files(tmp_path)}
    shapes = jax.eval_shape(lambda: {"matrix": _state()["matrix"]})
    part, _ = read(tmp_path / "c", 1, shapes, part=True)
    assert isinstance(part["matrix"], np.ndarray)
    assert _equal(part, {"matrix": _state()["matrix"]})
    assert {p: p.stat().st_mtime_ns for p in _files(tmp_path)} == before
    with pytest.raises(ValueError, match="another version or configuration"):
        read(tmp_path / "c", 1, shapes)


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    folder = tmp_path / "c"
    _save(folder, [1])
    for name in ("2.partial", "2.orbax-checkpoint-tmp"):  # the second: until 0.1
        shutil.copytree(folder / "1", folder / name)
    step, *_ = restore(folder, _state(), aside=tmp_path / "aside", report=pytest.fail)
    assert step == 1 and [p.name for p in folder.iterdir()] == ["1"]


def test_some_checkpoints_stay_for_ever(tmp_path):
    _save(tmp_path / "c", range(1, 10), keep=2, keep_every=3)
    assert steps(tmp_path / "c") == [3, 6, 8, 9]
    config = dataclasses.replace(
        QUICK, keep_checkpoints=1, checkpoint_every=4, keep_every=3
    )
    run(config, tmp_path / "run")
    assert steps(tmp_path / "run" / "checkpoints") == [3, 6, 9, 12]


def test_every_field_says_whether_it_may_change():
    assert list(RESUMING) == [field.name for field in dataclasses.fields(Config)]
    assert set(RESUMING.values()) == {"free", "override", "fixed"}


# Other values of fields that can be overridden.
OVERRIDES = {
    "reparam_range": (0.1, 10.0),
    "episode_length": (3, 40),
    "std": 0.02,
    "outer_steps": 14,
    "outer_lr": 1e-4,
    "outer_warmup": 1,
    "outer_clip": 2.0,
}


def test_an_override_is_asked_for_then_made_and_recorded(copy):
    assert {RESUMING[name] for name in OVERRIDES} == {"override"}
    changed = dataclasses.replace(QUICK, **OVERRIDES)
    with pytest.raises(ValueError, match="--override") as refused:
        run(changed, copy)
    lines = str(refused.value).splitlines()
    assert "  outer_lr: 0.003 -> 0.0001" in lines
    assert len(lines) == 2 + len(OVERRIDES)
    result = run(changed, copy, override=True)
    assert result.completed and result.step == 14
    content = json.loads((copy / "config.json").read_text())
    (record,) = content["overrides"]
    assert content["outer_lr"] == 1e-4
    assert record["step"] == 12 and set(record["changes"]) == set(OVERRIDES)
    assert record["changes"]["outer_steps"] == [12, 14]
    card = l2o.read_card(copy / "frozen")["card"]
    assert card["overrides"] == content["overrides"]
    # The record is no difference, and the old configuration is one now.
    assert run(changed, copy).completed
    with pytest.raises(ValueError, match=r"outer_lr: 0\.0001 -> 0\.003"):
        run(QUICK, copy)
    # Fewer steps than were made are not an override but a mistake.
    fewer = dataclasses.replace(changed, outer_steps=10)
    with pytest.raises(ValueError, match="has made 14 outer steps"):
        run(fewer, copy, override=True)
    assert json.loads((copy / "config.json").read_text()) == content


def test_an_override_changes_what_follows(copy, whole):
    shutil.rmtree(copy / "checkpoints" / "12")
    run(dataclasses.replace(QUICK, outer_lr=1e-4), copy, override=True)
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in (whole, copy)]
    losses = [[json.loads(line)["meta_loss"] for line in each] for each in lines]
    assert losses[0][:9] == losses[1][:9] and losses[0][9:] != losses[1][9:]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"particles": 4}, {"families": ("quadratic10", "mlp16")}],
)
def test_what_changes_the_state_is_refused_whatever_is_asked(change, copy):
    changed = dataclasses.replace(QUICK, outer_lr=1e-4, **change)
    before = (copy / "config.json").read_bytes()
    for override in (False, True):
        with pytest.raises(ValueError, match=f"{next(iter(change))}.* cannot change"):
            run(changed, copy, override=override)
    assert (copy / "config.json").read_bytes() == before


def _failing_after(monkeypatch, good):
    """Meta-gradients are NaN from an outer step on."""
    import l2o.meta_train.training._recipe as module

    make = module.make_outer_step

    def poisoned(estimator, tx, decay):
        def outer_step(outer, worker, data):
            def estimate(*args):
                gradient, *rest = estimator.estimate(*args)
                bad = outer.step >= good
                return jax.tree.map(
                    lambda g: jnp.where(bad, jnp.nan, g), gradient
                ), *rest

            step = make(estimator._replace(estimate=estimate), tx, decay)
            return step(outer, worker, data)

        return outer_step

    monkeypatch.setattr(module, "make_outer_step", poisoned)


@pytest.mark.parametrize(
    # Of one that is longer than a checkpoint's interval the next test has the count.
    "limit",
    [3, pytest.param(7, marks=pytest.mark.exhaustive)],
)
def test_a_run_without_meta_gradients_stops_and_exports(
    limit, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(
        QUICK, outer_steps=60, checkpoint_every=6, skip_limit=limit
    )
    _failing_after(monkeypatch, 6)
    out = tmp_path / "run"
    result = run(config, out, console=Console(width=1000))
    assert not result.completed and result.step == 6 + limit
    assert "stopped early: " in capsys.readouterr().out
    card = l2o.read_card(result.frozen)["card"]
    assert card["stopped_early"].startswith(f"the last {limit} of {6 + limit} outer")
    assert card["skipped_outer_steps"] == limit
    _, theta = l2o.load_unbound(result.frozen)
    like = (Outer(theta, (), (), ()), [])
    (good, _), _ = read(out / "checkpoints", 6, like, part=True)
    assert _equal(theta, good.theta)
    # Again: it goes on, and stops as much later.
    again = run(config, out)
    assert not again.completed and again.step == 6 + 2 * limit
    assert steps(out / "checkpoints")[-1] == again.step
    # When the cause is gone, the run ends as any, and its card says nothing of a stop.
    monkeypatch.undo()
    assert run(config, out).completed
    assert "stopped_early" not in l2o.read_card(out / "frozen")["card"]


def test_a_resumed_run_goes_on_counting_what_it_skipped(tmp_path, monkeypatch):
    config = dataclasses.replace(QUICK, outer_steps=60, skip_limit=7)
    _failing_after(monkeypatch, 6)

    def cut(record):
        if record["step"] == 10:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        run(config, tmp_path, on_step=cut)
    assert steps(tmp_path / "checkpoints")[-1] == 8
    assert run(config, tmp_path).step == 13


CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from l2o.meta_train.cli._main import main
sys.exit(main(sys.argv[2:]))
"""
SMALL = [
    *("meta-train", "--preset", "smoke", "--optimizer", "learnable_sgdm"),
    *("--families", "quadratic10", "--checkpoint-every", "20", "--outer-steps"),
]


def _limited(size, *arguments):
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(size), *SMALL, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        # Not the shared cache: a limited process leaves cut entries in it.
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path):
    out = tmp_path / "run"
    done = _limited(3000, "60", "--out", str(out))
    assert done.returncode == 2
    last = done.stderr.splitlines()
    (line,) = [x for x in last if x.startswith("l2o: ")]
    assert "could not be written" in line and "File too large" in line
    assert "run again to resume" in line
    assert not (out / "frozen").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_full_disk_ends_the_run_and_room_resumes_it(tmp_path):
    """A small file system, on which every checkpoint stays."""
    command = [sys.executable, "-m", "l2o.meta_train", *SMALL, "600"]
    command += ["--checkpoint-every", "4", "--keep-every", "4", "--out"]
    script = f"""
        mount -t tmpfs -o size=1300k none "$DISK" || exit 77
        {" ".join(command)} "$DISK/run"; echo "status $?"
        ls "$DISK/run/checkpoints" > "$DISK/../before"
        mount -o remount,size=60m "$DISK" || exit 77
        {" ".join(command)} "$DISK/run" && cp -r "$DISK/run" "$DISK/../copy"
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "DISK": str(disk)},
    )
    if done.returncode in (1, 77) and "status" not in done.stdout:
        pytest.skip(f"no mounts here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    assert "status 2" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("l2o: ") and "No space left on device. Make room" in line
    names = (tmp_path / "before").read_text().split()
    good = sorted(int(name) for name in names if name.isdecimal())
    assert good == list(range(4, good[-1] + 1, 4)) and good[-1] < 600
    assert f"resuming {disk}/run at outer step {good[-1]}" in done.stdout
    assert steps(tmp_path / "copy" / "checkpoints") == list(range(4, 601, 4))
    assert not (tmp_path / "copy" / "unreadable").exists()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=LIMIT)
    weights = Path("frozen", "model.safetensors")
    assert (tmp_path / "copy" / weights).read_bytes() == (
        tmp_path / "whole" / weights
    ).read_bytes()
