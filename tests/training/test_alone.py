"""A run's folder: any name, one writer, and what is said where it cannot be written."""

import ast
import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import l2o
import l2o.meta_train.files._lock as lock_module
from l2o.meta_train import Config, Following, follow, run
from l2o.meta_train.files._lock import _BEAT, locked, shows
from l2o.meta_train.files._writing import _REMEDIES, reading, writing
from l2o.meta_train.training._alike import _told
from l2o.meta_train.training._checkpoints import Checkpoints

QUICK = Config(
    optimizer="learnable_sgdm",
    families=("quadratic10",),
    reparam_level="none",
    particles=1,
    truncation=2,
    episode_length=(2, 4),
    outer_steps=4,
    outer_warmup=0,
    checkpoint_every=2,
)
SHORT = Following(steps=4, seeds=1, eval_every=2, eval_batches=1)


class _CutError(Exception):
    pass


def _cut(record):
    if record["step"] == 3:
        raise _CutError


@pytest.mark.parametrize(
    "name",
    [
        "sweep[lr=0.1] {a,b} 'q\" ü *?",
        *(
            pytest.param(x, marks=pytest.mark.exhaustive)
            for x in ("-dash", "[/bold]", "%s{}", "~", "new\nline")
        ),
    ],
)
def test_a_folder_may_have_any_name(name, capsys):
    # What the name would match as a pattern, or be as a URL.
    (Path("sweepl {a,b} 'q\" ü xx")).mkdir()
    with pytest.raises(_CutError):
        run(QUICK, name, on_step=_cut)
    assert run(QUICK, name).completed
    follow(name, SHORT)
    said = capsys.readouterr().out
    assert f"resuming {name} at outer step 2" in said
    assert f"following {name}: 0" in said
    assert l2o.load_unbound(Path(name) / "frozen")
    assert {p.name for p in Path(name).iterdir()} >= {"frozen", "tensorboard"}
    assert not list(Path(name).glob("*.lock"))


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="not valid UTF-8.*choose another folder"):
        run(QUICK, "a\udcff")


@pytest.mark.parametrize("name", ["gs:", "gs:/a", "a\\b", "bags:/a/b"])
def test_a_name_that_orbax_takes_for_another_is_refused(name):
    with pytest.raises(ValueError, match="cannot hold checkpoints.*Choose another"):
        run(QUICK, name)
    assert not list(Path().iterdir())


HOLD = """
import sys
from pathlib import Path
from l2o.meta_train.files._lock import locked
with locked(Path(sys.argv[1]), "another run", "Wait", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock of a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_until_the_first_is_killed(owner, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="is in use by another run") as refused:
        run(QUICK, tmp_path)
    assert f"process {owner.pid} on {os.uname().nodename}, started " in str(
        refused.value
    )
    assert "choose another folder" in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    owner.kill()
    owner.wait()
    begin = time.monotonic()
    with locked(tmp_path / "run.lock", "another run", "Wait", pytest.fail) as lock:
        lock.check()
        content = json.loads((tmp_path / "run.lock").read_text())
        assert content["pid"] == os.getpid()
    assert time.monotonic() - begin < _BEAT
    assert not (tmp_path / "run.lock").exists()


def test_a_second_run_of_one_process_is_refused(tmp_path):
    def second(record):
        with pytest.raises(
            OSError, match=f"in use by another run: process {os.getpid()}"
        ):
            run(QUICK, tmp_path)

    assert run(QUICK, tmp_path, on_step=second).completed


def test_a_second_follower_is_refused(tmp_path):
    run(QUICK, tmp_path)
    use = "another `evaluate --follow`"
    with locked(tmp_path / "evaluations.lock", use, "Wait", print):
        with pytest.raises(OSError, match="in use by another `evaluate --follow`"):
            follow(tmp_path, SHORT)
        assert run(QUICK, tmp_path).completed


def _of_another(path, **changes):
    """As if a process of elsewhere had left the file."""
    with locked(path, "another run", "Wait", print):
        content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_the_lock_of_another_machine_ends_with_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_PATIENCE", 0.3)
    path, said = tmp_path / "run.lock", []
    _of_another(path, host="far", kernel="another")
    with locked(path, "another run", "Wait", said.append):
        pass
    assert "process" in said[0] and "on far" in said[0] and "watching" in said[0]

    _of_another(path, host="far", kernel="another")
    beats = iter(range(1, 10**6))
    read = lock_module._content
    monkeypatch.setattr(
        lock_module,
        "_content",
        lambda file: read(file).replace(b'"beat": 0', b'"beat": %d' % next(beats)),
    )
    with (
        pytest.raises(OSError, match=r"on far.*If that process is gone, delete .*lock"),
        locked(path, "another run", "Wait", said.append),
    ):
        pass


def test_where_the_kernel_has_no_locks_a_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_try", lambda descriptor: None)
    path = tmp_path / "run.lock"
    # A living process of the same number is not the owner: it was born later.
    _of_another(path, born="1")
    with (
        locked(path, "another run", "Wait", pytest.fail),
        pytest.raises(OSError, match="in use by another run"),
        locked(path, "another run", "Wait", pytest.fail),
    ):
        pass


def test_the_owner_changes_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_BEAT", 0.01)
    path = tmp_path / "run.lock"
    with locked(path, "another run", "Wait", print) as lock:
        first = path.read_bytes()
        while path.read_bytes() == first:
            time.sleep(0.01)
        assert shows(path, lock.mark) and not shows(path, "another")
        assert not shows(tmp_path / "elsewhere", lock.mark)


def test_a_run_whose_lock_is_taken_away_stops(tmp_path):
    def take(record):
        (tmp_path / "run" / "run.lock").unlink(missing_ok=True)

    with pytest.raises(OSError, match="run.lock was deleted or replaced"):
        run(QUICK, tmp_path / "run", on_step=take)


def test_a_folder_that_is_moved_away_is_not_made_again(tmp_path):
    out = tmp_path / "run"

    def move(record):
        if record["step"] == 3:
            while not (out / "checkpoints" / "2").exists():
                time.sleep(0.01)  # not in the middle of a save
            out.rename(tmp_path / "moved")

    with pytest.raises(OSError, match="put it back and run again") as told:
        run(QUICK, out, on_step=move)
    assert "the last good one" in str(told.value) and not out.exists()
    (tmp_path / "moved").rename(out)
    assert run(QUICK, out).completed


@pytest.mark.parametrize("number", sorted({*_REMEDIES, errno.EIO}))
@pytest.mark.parametrize("around", [reading, writing])
def test_errors_of_the_system_name_the_file_and_a_remedy(number, around):
    with (
        pytest.raises(OSError, match="^here/a could not be ") as told,
        around(Path("here/a")),
    ):
        raise OSError(number, os.strerror(number), "somewhere/b")
    text = str(told.value)
    assert os.strerror(number) in text and "\n" not in text
    assert "Errno" not in text and "somewhere" not in text
    assert text.partition(os.strerror(number))[2].startswith(". ")


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_where_a_folder_should_be_is_told(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="A file lies where a folder is needed: move it"):
        run(QUICK, tmp_path / name)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_disturbs_no_save(jump, tmp_path, monkeypatch):
    # At every reading, of whatever part of the run.
    clock = time.time
    readings = iter(range(1, 10**9))
    monkeypatch.setattr("time.time", lambda: clock() + jump * next(readings))
    config = dataclasses.replace(QUICK, checkpoint_every=1)
    assert run(config, tmp_path).completed


def test_no_clock_of_the_wall_decides_when_a_run_saves():
    """It is read for people and TensorBoard alone."""
    folder = Path(l2o.meta_train.__file__).parent
    for name in ("_checkpoints", "_loop", "_run", "_folder", "_alike", "_follow"):
        (path,) = folder.rglob(f"{name}.py")
        text = path.read_text()
        assert "time.time(" not in text and "datetime" not in text, name


def test_no_console_reads_markup_out_of_names():
    """`[lr=0.1]` in a folder's name would be taken for a style."""
    folder = Path(l2o.meta_train.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console":
                options = {option.arg for option in node.keywords}
                assert options & {"markup", "quiet"}, f"{path}:{node.lineno}"


def test_what_differs_is_told_by_process():
    assert _told(["1", "2", "1"]) == "1 in process 0, 2; 2 in process 1"


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1, last=3)
    checkpoints.save(3, {}, {})
    checkpoints.wait()
    checkpoints.close()
    assert not (tmp_path / "c").exists()
