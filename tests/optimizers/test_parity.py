"""The published optimizers' recorded outputs, replayed.

`traces/*/*.npz` are measured figures: outputs of google/learned_optimization
(Apache-2.0, commit 32186aa), amoudgl/celo (MIT, commit 66d9761) and PyLO (BSD-3,
commit d05c6c1), recorded in float32 on CPU with random theta. Each file holds 20
updates of one tree of tensors with the gradients that were handed in.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import read_arrays, script
from slow_forms import SlowCelo2

import l2o
from l2o.rule import torch_axes

ROOT = Path(__file__).parents[2]
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
SCRIPT = ROOT / "scripts" / "checks" / "check_traces.py"
# Random gradients of one sign are damped by Adam's second moment more than these move.
LEAST_MOVEMENT = 5


@pytest.fixture(scope="module")
def check_traces():
    return script("checks", "check_traces")


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
            if key in trace and trace[key].ndim:
                yield kind, trace[key]
    for kind, names in _PYLO_STATE.items():
        for key in names:
            key = f"state/{name}/{key}"
            if key in trace and trace[key].size:
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
                order = torch_axes(ours.ndim - 1)
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
    trace = read_arrays(path)
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


def _changed(tmp_path, name, meta=None, **arrays):
    """A recorded trace with other entries."""
    path = next(p for p in TRACES if p.stem == name)
    trace = read_arrays(path)
    old = json.loads(str(trace["meta"]))
    trace |= {"meta": np.array(json.dumps({**old, **(meta or {})})), **arrays}
    np.savez(tmp_path / "changed.npz", **trace)
    return tmp_path / "changed.npz"


COSINE = {"learning_rate": 0.02, "warmup_fraction": 0.1, "constant_fraction": 0.3}


def _cosine(t, last=0.25):
    """The published schedule over 20 steps; its warm-up is the longer of both."""
    if t < 20 * 0.3:
        return 0.02 * t / (20 * 0.3)
    return 0.02 * (last + (1 - last) * (1 + np.cos(np.pi * (t - 6) / 14)) / 2)


@pytest.mark.parametrize(
    ("rate", "schedule"),
    [
        (
            {
                "cls": "optimizers.learning_rate_schedules.CosineLearningRateSchedule",
                "config": {**COSINE, "min_learning_rate_mult": 0.25},
            },
            _cosine,
        ),
        (
            {"class": "CosineLearningRateSchedule", **COSINE},
            lambda t: _cosine(t, 0),
        ),
        (
            "CosineLearningRateSchedule(0.02, 0.25, constant_fraction=0.3, "
            "warmup_fraction=0.1)",
            _cosine,
        ),
        (
            {"cls": "x.LinearRampupSqrtDecay", "peak_lr": 0.02, "warmup_steps": 5},
            lambda t: 0.02 * min(max(t, 1) / 5, np.sqrt(5 / max(t, 1))),
        ),
        (
            {"cls": "x.PiecewiseLinear", "times": [2, 12], "vals": [0.0, 0.02]},
            lambda t: 0.02 * np.clip((t - 2) / 10, 0, 1),
        ),
        (
            {"cls": "x.ExponentialDecay", "base_lr": 0.02, "decay_amount": 0.1},
            lambda t: 0.02 * 0.9**t,
        ),
    ],
)
def test_nadamw_under_a_schedule(check_traces, tmp_path, rate, schedule):
    path = next(p for p in TRACES if p.stem == "google_nadamw")
    trace = read_arrays(path)
    config = {**json.loads(str(trace["meta"]))["config"], "learning_rate": rate}
    config |= {"adamw_weight_decay": 0.1, "l2_weight_decay": 0.01}
    moved = {}
    for name in json.loads(str(trace["meta"]))["leaf_order"]:
        p, m, v = np.float64(trace[f"params/0/{name}"]), 0, 0
        for t in range(20):
            g = trace[f"grads/{name}"][t] - 0.01 * p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            alpha = schedule(t) * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
            p = p - alpha * ((0.9 * m + 0.1 * g) / (np.sqrt(v) + 1e-8) + 0.1 * p)
            moved[f"params/{t + 1}/{name}"] = p
    path = _changed(tmp_path, "google_nadamw", {"config": config}, **moved)
    found = check_traces.differences(check_traces.replay(path))
    for name, (difference, tolerance, movement) in found.items():
        assert difference <= tolerance and movement > 1e3 * tolerance, name


def _with_defaults(name, kwargs, groups):
    """PyLO's groups as its constructor leaves them."""
    defaults = {
        **{"lr": 1e-3, "weight_decay": 0.1 if name == "ELO_CELO2_naive" else 0.0},
        **{"adam_lr_mult": 1.0, "use_adamw_for_1d": True, "orthogonalize": True},
        **{"clip_grad": name == "ELO_CELO2_naive", "clip_norm": 1.0, "exp_mult": 0.0},
        **{"rmsmult": 1.0, "param_scale_mult": False, "grad_clip_val": 1000.0},
        "is_embedding": False,
        **kwargs,
    }
    defaults.setdefault("adam_weight_decay", defaults["weight_decay"])
    return [{**defaults, **group} for group in groups]


class _SlowGroups(SlowCelo2):
    """Of one group of PyLO's, in l2o's layout."""

    def routed(self, k, g):
        return self.a["use_adamw"] and (g.ndim < 2 or self.a["embedding"])


def _slow_celo2(check_traces, name, trace, meta, groups):
    """Parameters after every update of groups as constructed; in PyTorch's layout."""
    nn = {"b0": trace["theta/b0"]}
    nn["w0"] = np.concatenate([trace[f"theta/w0.{i}"] for i in range(14)])
    for i in (0, 1):
        nn[f"w{i + 1}"] = trace[f"theta/dense_w.{i}"]
        nn[f"b{i + 1}"] = trace[f"theta/dense_b.{i}"]
    ours = script("checks", "pylo_traces").ours
    params = {k: np.float64(ours(trace[f"params0/{k}"])) for k in meta["param_order"]}
    shared = {
        **l2o.celo2(variant="pylo", rms_decays=(0.95,)).arguments,
        **{"adam_bias_correction": True, "max_norm": None},
    }
    rules = []
    for group in groups:
        a = {
            **shared,
            "learning_rate": group["lr"],
            "weight_decay": group["weight_decay"],
            "mult_1d": group["adam_lr_mult"],
            "weight_decay_1d": group["adam_weight_decay"],
            "gradient_bound": group["grad_clip_val"],
            "use_adamw": group["use_adamw_for_1d"],
            "embedding": group["is_embedding"],
            **{k: group[k] for k in ("exp_mult", "param_scale_mult")},
            "step_mult": group["rmsmult"],
            "orthogonalize": group["orthogonalize"],
        }
        mine = {k: params[k] for k in group["params"]}
        rules.append((group, _SlowGroups(name, {"nn": nn}, a, mine)))
    history = {k: [] for k in params}
    for t in range(meta["steps"]):
        grads = {k: np.float64(ours(trace[f"grads/{k}"][t])) for k in params}
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        new = {}
        for group, rule in rules:
            bound = group["clip_norm"] if group["clip_grad"] else np.inf
            mine = {k: grads[k] * min(1, bound / norm) for k in group["params"]}
            old = {k: params[k] for k in group["params"]}
            new |= {k: old[k] + u for k, u in rule.update(mine, old, None)}
        params = new
        for k, x in params.items():
            order = torch_axes(x.ndim)
            history[k].append(np.transpose(x, order))
    return {f"params/{k}": np.stack(x) for k, x in history.items()}


@pytest.mark.parametrize("cls", ["CELO2_naive", "ELO_CELO2_naive"])
@pytest.mark.parametrize(
    "groups",
    [
        # An embedding with a rate and a decay of its own; Adam's is the constructor's.
        [
            {"params": ["w1"], "is_embedding": True, "lr": 0.004, "weight_decay": 0.5},
            {"params": ["b1", "w2", "b2", "pw", "s1", "u"]},
        ],
        [
            {"params": ["w1", "b1"], "adam_lr_mult": 5.0, "adam_weight_decay": 0.3},
            {"params": ["w2", "s1"], "use_adamw_for_1d": False, "rmsmult": 2.0},
            # What only the constructor reads changes nothing in a group.
            {"params": ["b2", "pw", "u"], "exp_mult": 0.1, "ns_iters": 1},
        ],
    ],
)
def test_groups_of_celo2(check_traces, tmp_path, cls, groups):
    path = next(p for p in TRACES if p.stem == "elo_celo2_embedding_group")
    trace = read_arrays(path)
    kwargs = {"lr": 0.01, "weight_decay": 0.05}
    whole = _with_defaults(cls, kwargs, groups)
    meta = {
        **{"optimizer": cls, "constructor_kwargs": kwargs, "groups_arg": groups},
        "param_groups_after_construction": whole,
    }
    name = cls.removesuffix("_naive").lower()
    recorded = json.loads(str(trace["meta"]))
    moved = _slow_celo2(check_traces, name, trace, recorded, whole)
    path = _changed(tmp_path, "elo_celo2_embedding_group", meta, **moved)
    found = check_traces.differences(check_traces.replay(path))
    for leaf, (difference, tolerance, movement) in found.items():
        assert difference <= 4 * tolerance and movement > 1e3 * tolerance, leaf


NADAMW = "google_nadamw"
GROUPS = "elo_celo2_embedding_group"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (NADAMW, {"lookahead": 3}, "a trace with the entry lookahead"),
        (NADAMW, {"config": {"amsgrad": True}}, "NAdamW with amsgrad"),
        (
            NADAMW,
            {"config": {"learning_rate": "<x.Cosine object at 0x7>"}},
            "NAdamW with the schedule",
        ),
        (
            NADAMW,
            {"config": {"learning_rate": {"cls": "x.Cyclic", "config": {}}}},
            "NAdamW with the schedule Cyclic",
        ),
        (
            NADAMW,
            {"config": {"learning_rate": {"cls": "CosineLearningRateSchedule"}}},
            "recorded without learning_rate",
        ),
        (
            NADAMW,
            {"config": {"learning_rate": {"cls": "ExponentialDecay", "rate": 1}}},
            "NAdamW with ExponentialDecay's rate",
        ),
        (NADAMW, {"update_signature": "opt.update(state)"}, "updates called as"),
        (
            GROUPS,
            {"param_groups_after_construction": [{"params": [], "fused": True}]},
            "a group of ELO_CELO2_naive with fused",
        ),
        (
            GROUPS,
            {"param_groups_after_construction": [{"params": ["w1"]}]},
            "groups that do not have every parameter once",
        ),
        (GROUPS, {"constructor_kwargs": {"amsgrad": True}}, "ELO_CELO2 with amsgrad"),
        (GROUPS, {"lr_schedule": "cosine"}, "a trace with the entry lr_schedule"),
        (GROUPS, {"net": {"dropout": 0.1}}, "a network with dropout"),
        (
            "velo_wd",
            {
                "groups_arg": [
                    {"params": ["conv", "mat", "vec"], "exp_mult": 0.1},
                ]
            },
            "VeLO's group with exp_mult",
        ),
        ("google_mlp_lopt", {"config": {"with_g": False}}, "."),
    ],
)
def test_what_cannot_be_replayed_is_named(check_traces, tmp_path, name, change, reason):
    path = _changed(tmp_path, name, change)
    with pytest.raises(check_traces.Unsupported, match=reason):
        check_traces.replay(path)


def test_arrays_that_are_not_understood_are_named(check_traces, tmp_path):
    path = _changed(tmp_path, NADAMW, None, masks=np.ones(3))
    with pytest.raises(check_traces.Unsupported, match="with the arrays masks"):
        check_traces.replay(path)


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
    trace = read_arrays(path)
    trace[f"theta/{part}"] = np.swapaxes(trace[f"theta/{part}"], -1, -2)
    np.savez(tmp_path / "turned.npz", **trace)
    found = check_traces.differences(check_traces.replay(tmp_path / "turned.npz"))
    assert any(gap > 10 * tolerance for gap, tolerance, _ in found.values())
