"""The published optimizers' recorded outputs, replayed.

`traces/*.npz` are measured figures: outputs of google/learned_optimization (Apache-2.0,
commit 32186aa), recorded in float32 on CPU with random theta. Each file holds 20
updates of one tree of tensors with the gradients that were handed in.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import momenta

ROOT = Path(__file__).parent.parent
TRACES = sorted((ROOT / "tests" / "traces").glob("*.npz"))
SCRIPT = ROOT / "scripts" / "check_traces.py"


@pytest.fixture(scope="module")
def check_traces():
    spec = importlib.util.spec_from_file_location("check_traces", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=TRACES, ids=lambda path: path.stem)
def replay(request, check_traces):
    return check_traces.replay(request.param)


def test_parameters_follow_the_trace(replay, check_traces):
    assert len(replay.history) == replay.meta["steps"] == 20
    found = check_traces.differences(replay)
    for name, (difference, tolerance, moved) in found.items():
        assert difference <= tolerance, name
        assert moved > 50 * tolerance, name  # so that the comparison means something


def test_state_follows_the_trace(replay):
    trace, state = replay.trace, replay.state
    assert state.count == trace["state/20/iteration"] == 20

    def check(ours, key):
        theirs = trace[f"state/20/{key}"]
        ours = np.stack([np.asarray(x).reshape(theirs.shape[:-1]) for x in ours], -1)
        # Means over an axis and products of decays round differently, nothing more.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)

    for name in replay.meta["leaf_order"]:
        momentum = [tree[name] for tree in momenta(state)]
        if hasattr(state, "momentum"):
            check(momentum, f"rolling_features/m/{name}")
            continue
        check(momentum, f"mom_rolling/m/{name}")
        check(
            [tree[name] for tree in state.accumulators.rms], f"rms_rolling/rms/{name}"
        )
        rows = [tree[name] for tree in state.accumulators.row]
        if f"state/20/fac_rolling_features/v_diag/{name}" in trace.files:
            check(rows, f"fac_rolling_features/v_diag/{name}")
        else:
            cols = [tree[name] for tree in state.accumulators.col]
            check(rows, f"fac_rolling_features/v_row/{name}")
            check(cols, f"fac_rolling_features/v_col/{name}")


def _run(folder):
    command = [sys.executable, str(SCRIPT), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_script_says_ok_and_unsupported_and_differs(tmp_path):
    assert len(TRACES) == 2
    trace = dict(np.load(TRACES[1], allow_pickle=False))
    trace["params/7/dense/w"] = trace["params/7/dense/w"] + 1e-4
    np.savez(tmp_path / "off.npz", **trace)
    other = {"meta": np.array('{"cls": "somewhere.HyperV2", "config": {}}')}
    np.savez(tmp_path / "other.npz", **other)
    done = _run(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "| off | differs | 1.0e-04 |" in done.stdout
    assert "| other | unsupported: class HyperV2 |" in done.stdout

    (tmp_path / "good").mkdir()
    for path in TRACES:
        (tmp_path / "good" / path.name).write_bytes(path.read_bytes())
    done = _run(tmp_path / "good")
    assert done.returncode == 0 and done.stdout.count("| ok |") == 2
