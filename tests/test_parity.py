"""The published optimizers' recorded outputs, replayed.

`traces/*.npz` are measured figures: the outputs of google/learned_optimization
(Apache-2.0, commit 32186aa), recorded in float32 on CPU with random theta. Each file
holds 20 updates of one tree of tensors with the gradients that were handed in.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o

TRACES = sorted((Path(__file__).parent / "traces").glob("*.npz"))


def _theta(trace, cls):
    def group(prefix):
        return {
            key.removeprefix(prefix): jnp.asarray(trace[key])
            for key in trace.files
            if key.startswith(prefix)
        }

    if cls == "MLPLOpt":
        layers = group("theta/mlp/~/linear_")
        return {"nn": {f"{k[2]}{k[0]}": v for k, v in layers.items()}}
    theta = {key: value for key, value in group("theta/").items() if "/" not in key}
    return {**theta, "nn": group("theta/nn/~/")}


def _optimizer(meta):
    config = meta["config"]
    names = ["hidden_size", "hidden_layers", "exp_mult", "step_mult"]
    arguments = {name: config[name] for name in names}
    if meta["cls"].endswith("AdafacMLPLOpt"):
        for kind in ("momentum", "rms", "adafactor"):
            arguments[f"{kind}_decays"] = config[f"initial_{kind}_decays"]
        return l2o.small_fc(**arguments)
    return l2o.mlp(**arguments)


def _tolerance(meta, name):
    """2e-6 absolute plus 20 times the trace's own noise.

    The noise is how far the published code moves its own result when gradients change
    by 1e-7 relative, or when it is run without jit: round-off, amplified by 20 steps.
    A wrong epsilon, feature order or axis is orders of magnitude above it.
    """
    noise = (
        meta["noise_floor_1e7_grad"][name],
        meta["noise_floor_eager_vs_jit"][name],
    )
    return 2e-6 + 20 * max(noise)


@pytest.fixture(scope="module", params=TRACES, ids=lambda path: path.stem)
def replay(request):
    trace = np.load(request.param, allow_pickle=False)
    meta = json.loads(str(trace["meta"]))
    names = meta["leaf_order"]
    optimizer = _optimizer(meta)
    theta = _theta(trace, meta["cls"].rsplit(".")[-1])

    @jax.jit
    def step(theta, params, state, grads, loss):
        tx = optimizer.bind(theta)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = {name: jnp.asarray(trace[f"params/0/{name}"]) for name in names}
    state = optimizer.bind(theta).init(params)
    history = []
    for t in range(meta["steps"]):
        grads = {name: jnp.asarray(trace[f"grads/{name}"][t]) for name in names}
        params, state = step(theta, params, state, grads, trace["loss"][t])
        history.append(params)
    return trace, meta, history, state


def test_parameters_follow_the_trace(replay):
    trace, meta, history, _ = replay
    for t, params in enumerate(history, start=1):
        for name in meta["leaf_order"]:
            moved = np.abs(trace[f"params/{t}/{name}"] - trace[f"params/0/{name}"])
            tolerance = _tolerance(meta, name)
            assert moved.max() > tolerance or t < 3  # the comparison means something
            np.testing.assert_allclose(
                params[name], trace[f"params/{t}/{name}"], rtol=0, atol=tolerance
            )


def test_state_follows_the_trace(replay):
    trace, meta, _, state = replay
    steps = meta["steps"]
    assert state.count == trace[f"state/{steps}/iteration"] == steps

    def check(ours, key):
        theirs = trace[f"state/{steps}/{key}"]
        ours = np.stack([np.asarray(x).reshape(theirs.shape[:-1]) for x in ours], -1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)

    for name in meta["leaf_order"]:
        momentum = [tree[name] for tree in state.momentum]
        if hasattr(state, "rms"):
            check(momentum, f"mom_rolling/m/{name}")
            check([tree[name] for tree in state.rms], f"rms_rolling/rms/{name}")
            rows = [v.row[name] for v in state.second]
            cols = [v.col[name] for v in state.second]
            if trace[f"params/0/{name}"].ndim < 2:
                check(rows, f"fac_rolling_features/v_diag/{name}")
            else:
                check(rows, f"fac_rolling_features/v_row/{name}")
                check(cols, f"fac_rolling_features/v_col/{name}")
        else:
            check(momentum, f"rolling_features/m/{name}")


def test_traces_are_there():
    assert len(TRACES) == 2
