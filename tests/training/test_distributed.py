"""Two real processes on the loopback interface: one run, one result."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import cpu_devices
from safetensors.numpy import load_file

from l2o.meta_train.cli._main import main

OPTIONS = [
    *("--optimizer", "learnable_sgdm", "--families", "quadratic10"),
    *("--episode-length", "8", "16", "--particles", "4", "--truncation", "4"),
    *("--outer-warmup", "0", "--checkpoint-every", "5", "--preset", "smoke"),
]


# A process that is to die is missed after ten seconds, not after half a minute.
IMPATIENT = """
import sys
from l2o.meta_train import _processes
from l2o.meta_train.cli._main import main
_processes._HEARTBEAT = 10
sys.exit(main(sys.argv[1:]))
"""


def _start(
    out,
    steps,
    process=None,
    port=None,
    devices=1,
    override=False,
    more=(),
    impatient=False,
):
    program = ["-c", IMPATIENT] if impatient else ["-m", "l2o.meta_train"]
    command = [sys.executable, *program, "meta-train", *OPTIONS]
    command += ["--out", str(out), "--outer-steps", str(steps)]
    command += more
    if override:
        command += ["--override"]
    if process is not None:
        command += ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
        command += ["--processes", "2", "--process", str(process)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cpu_devices(devices),
    )


WORDS = re.compile("[A-Za-z]+")
GLOO = set(
    WORDS.findall(
        "[Gloo] Rank 0 is connected to 1 peer ranks. "
        "Expected number of connected peer ranks is : 1"
    )
)


def _port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _pair(out, steps, devices=1, **options):
    port = _port()
    return [_start(out, steps, i, port, devices, **options) for i in range(2)]


def _finish(*processes, seconds=180):
    """[(exit status, stdout, stderr)]."""
    done = []
    for process in processes:
        try:
            output, errors = process.communicate(timeout=seconds)
        finally:
            process.kill()
        done.append((process.returncode, output, errors))
    return done


def _theta(out):
    return load_file(Path(out) / "frozen" / "model.safetensors")


def _steps(out):
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def _wait_for(out, step, seconds=120):
    for _ in range(seconds * 10):
        if (Path(out) / "checkpoints" / str(step)).exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint {step}")


def _same(a, b):
    a, b = _theta(a), _theta(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process of one device."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(["meta-train", *OPTIONS, "--out", str(out), "--outer-steps", "12"]) == 0
    return out


def test_two_processes_compute_what_one_does(alone, tmp_path):
    done = _finish(*_pair(tmp_path / "run", 12, devices=2))
    assert [status for status, *_ in done] == [0, 0], done
    _same(alone, tmp_path / "run")
    # Process 0 speaks and writes for all. What the other prints are lines of Gloo's
    # threads, which cut each other short.
    said = set(WORDS.findall(done[1][1]))
    assert "frozen optimizer" in done[0][1] and said <= GLOO, done[1][1]
    assert _steps(tmp_path / "run") == list(range(1, 13))


@pytest.mark.slow
def test_a_dead_process_stops_the_others_and_the_run_resumes(tmp_path):
    out = tmp_path / "run"
    pair = _pair(out, 100_000, devices=2, impatient=True)
    _wait_for(out, 5)
    pair[1].kill()
    (status, _, errors), _ = _finish(*pair)
    # Either the backend raised, or JAX ended the process at the missing heartbeats.
    assert status != 0 and "Start all processes again" in errors, errors
    # One process of one device resumes what two of two have left.
    last = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    (done,) = _finish(_start(out, last + 5, override=True))
    assert done[0] == 0 and "resuming" in done[1], done
    assert _steps(out) == list(range(1, last + 6))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_sigterm_to_one_stops_both_at_one_step(tmp_path):
    out = tmp_path / "run"
    pair = _pair(out, 100_000)
    _wait_for(out, 5)
    pair[1].send_signal(signal.SIGTERM)
    done = _finish(*pair)
    assert [status for status, *_ in done] == [0, 0], done
    assert "stopped by a signal at outer step" in done[0][1]
    last = max(int(p.name) for p in (out / "checkpoints").iterdir())
    assert _steps(out)[-1] == last


def test_what_does_not_fit_is_said_before_anything_else(tmp_path):
    (status, _, errors), *_ = _finish(_start(tmp_path / "run", 12, devices=3))
    assert status == 2
    assert "4 particles cannot be shared by 3 devices" in errors
    assert "such as 6" in errors
    assert not (tmp_path / "run").exists()


def test_processes_that_were_started_differently_are_refused(tmp_path):
    port = _port()
    out = tmp_path / "run"
    done = _finish(
        _start(out, 12, 0, port), _start(out, 12, 1, port, more=["--outer-lr", "0.1"])
    )
    for status, _, errors in done:
        assert status == 2, done
        assert "outer_lr: 0.003 in process 0; 0.1 in process 1" in errors
        assert "seed" not in errors and "Traceback" not in errors
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "other, told",
    [
        ({"more": ["--batch-devices", "2"], "devices": 1}, "batch_devices: 1 in"),
        ({"devices": 2}, "the same number of devices"),
        ({"out": "elsewhere"}, "does not see its files in"),
    ],
)
def test_other_differences_are_refused(other, told, tmp_path):
    port = _port()
    folder = tmp_path / other.pop("out", "run")
    pair = [_start(tmp_path / "run", 12, 0, port), _start(folder, 12, 1, port, **other)]
    for status, _, errors in _finish(*pair):
        assert status == 2 and told in errors, errors
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
