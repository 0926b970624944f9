"""The published optimizers' recorded outputs, replayed.

`traces/*/*.npz` are measured figures: outputs of google/learned_optimization
(Apache-2.0, commit 32186aa), amoudgl/celo (MIT, commit 66d9761) and PyLO (BSD-3,
commit d05c6c1), recorded in float32 on CPU with random theta. Each file holds 20
updates of one tree of tensors with the gradients that were handed in.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TRACES = sorted((ROOT / "tests" / "traces").rglob("*.npz"))
# Other options and seeds of architectures that the rest shows too.
MORE = (
    "adafac_mlp_lopt_noconcat_separate",
    "adafac_ties_native",
    "adafac_ties_stable",
    "celo2_default",
    "celo2_slashb_biascorr",
    "celo2base_aggmag_exp",
    "celo_p2_nested_inits3",
    "celo_phase1_random",
    "celo_velo_s",
    "elo_celo2_embedding_group",
    "elo_nan_grads_clip",
    "google_velo_ablate_b",
    "google_velo_validdim_on",
    "mulo_multi_width_wd",
    "rnn_mlp_lopt_decays_rate",
    "velo_ties_stable",
    "velo_wd",
)
CASES = [
    pytest.param(
        path,
        marks=[pytest.mark.exhaustive] if path.stem in MORE else [],
        id=path.stem,
    )
    for path in TRACES
]
SCRIPT = ROOT / "scripts" / "check_traces.py"
# Random gradients of one sign are damped by Adam's second moment more than these move.
LEAST_MOVEMENT = 5


@pytest.fixture(scope="module")
def check_traces():
    spec = importlib.util.spec_from_file_location("check_traces", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=CASES)
def replay(request, check_traces):
    return check_traces.replay(request.param)


def test_parameters_follow_the_trace(replay, check_traces):
    assert len(replay.history) == replay.meta["steps"] == 20
    found = check_traces.differences(replay)
    for name, (difference, tolerance, moved) in found.items():
        assert difference <= tolerance, name
        # So that the comparison means something.
        assert moved > LEAST_MOVEMENT * tolerance, name


def _published_accumulators(trace, name):
    """Their accumulators of one tensor, decays last; row and col in ours' axes."""
    kinds = {
        "momentum": ("rolling_features/m", "mom_rolling/m", "state_2d/mom_rolling/m"),
        "rms": ("rms_rolling/rms", "state_2d/rms_rolling/rms"),
        "row": [f"{p}/{v}" for p in _FACTORED for v in ("v_row", "v_diag")],
        "col": [f"{p}/v_col" for p in _FACTORED],
    }
    for kind, prefixes in kinds.items():
        for prefix in prefixes:
            key = f"state/20/{prefix}/{name}"
            if key in trace.files and trace[key].ndim:
                yield kind, trace[key]
    for kind, names in _PYLO_STATE.items():
        for key in names:
            key = f"state/{name}/{key}"
            if key in trace.files and trace[key].size:
                yield kind, trace[key]


_FACTORED = ("fac_rolling_features", "fac_rolling", "state_2d/fac_rolling")
_PYLO_STATE = {
    "momentum": ["mom"],
    "rms": ["rms"],
    "row": ["fac_vec_row", "fac_vec_v"],
    "col": ["fac_vec_col"],
}


def _accumulators(state, kind):
    """Ours, one tree per decay; None for a state without such."""
    if kind == "momentum" and hasattr(state, "momentum"):
        return state.momentum if isinstance(state.momentum, tuple) else None
    return getattr(getattr(state, "accumulators", None), kind, None)


def test_accumulators_follow_the_trace(replay, check_traces):
    compared = 0
    for name in replay.published[0]:
        for kind, theirs in _published_accumulators(replay.trace, name):
            trees = _accumulators(replay.state, kind)
            if trees is None:
                continue
            ours = np.stack([np.asarray(tree[name]) for tree in trees], -1)
            if "cls" not in replay.meta:
                # Ours is (..., in, out), theirs (out, in, ...); a reduced axis is gone.
                order = check_traces.torch_axes(ours.ndim - 1)
                ours = np.transpose(ours, [*order, ours.ndim - 1])
            # Means over an axis and products of decays round differently.
            np.testing.assert_allclose(
                ours.reshape(theirs.shape),
                theirs,
                rtol=2e-5,
                atol=1e-7 * max(1, np.abs(theirs).max()),
                err_msg=f"{name} {kind}",
            )
            compared += 1
    if not compared:
        pytest.skip("a state of another kind; the parameters follow from it")


def _run(folder):
    command = [sys.executable, str(SCRIPT), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_script_says_ok_and_unsupported_and_differs(tmp_path):
    path = next(p for p in TRACES if "google_mlp_lopt" in p.name)
    trace = dict(np.load(path, allow_pickle=False))
    trace["params/7/dense/w"] = trace["params/7/dense/w"] + 1e-4
    np.savez(tmp_path / "off.npz", **trace)
    shutil.copy(path, tmp_path / "good.npz")
    others = {
        "cls": {"cls": "somewhere.Shampoo", "config": {}},
        "option": {
            **json.loads(str(trace["meta"])),
            "config": {"hidden_size": 32, "with_magic": True},
        },
    }
    for name, meta in others.items():
        arrays = {**trace, "meta": np.array(json.dumps({**others["option"], **meta}))}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "broken.npz").write_bytes(path.read_bytes()[:5000])
    done = _run(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "| broken | error: " in done.stdout
    (tmp_path / "broken.npz").unlink()
    assert "| off | differs | 1.0e-04 |" in done.stdout
    assert "| cls | unsupported: class Shampoo |" in done.stdout
    assert "has the argument 'with_magic', unknown to l2o |" in done.stdout
    assert "| good | ok |" in done.stdout
    (tmp_path / "off.npz").unlink()
    assert _run(tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("velo_default", "mlp.hidden_weights_.0"),
        ("elo_default", "network.linear_0.weight"),
        ("google_velo_nobug", "ff_mod_stack/~/w1"),
    ],
)
def test_a_forgotten_transpose_would_show(check_traces, tmp_path, name, part):
    path = next(p for p in TRACES if p.stem == name)
    trace = dict(np.load(path, allow_pickle=False))
    trace[f"theta/{part}"] = np.swapaxes(trace[f"theta/{part}"], -1, -2)
    np.savez(tmp_path / "turned.npz", **trace)
    found = check_traces.differences(check_traces.replay(tmp_path / "turned.npz"))
    assert any(gap > 10 * tolerance for gap, tolerance, _ in found.values())
