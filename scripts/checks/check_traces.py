"""Replays recorded outputs of published optimizers through l2o.

    python scripts/checks/check_traces.py tests/traces [FOLDER ...]

A trace is an .npz file with a published class and its constructor arguments (`meta`),
its meta-parameters, gradients, losses, and the parameters after every update: of
google/learned_optimization and amoudgl/celo, or of PyLO, whose tensors are turned from
PyTorch's layout to (..., in, out) first. For each this prints `ok` or `differs` with
the largest difference and its tolerance, `unsupported` with the reason, or `error`
where the file is damaged. Whatever a trace says is used or named as unsupported: a
constructor argument, an option of a group, a schedule, an unknown entry. The exit
status is 1 if a trace differs or is damaged.

Tolerance of a tensor: 2e-6 absolute plus 20 times the trace's own noise, which is how
far the published code moves its own result when gradients change by 1e-7 relative, when
it runs without jit, or in float64. That is round-off amplified by the updates; a wrong
epsilon, feature order or axis is orders of magnitude above it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from google_traces import google_problem
from pylo_traces import pylo_problem
from recorded_trace import Unsupported


class Replay(NamedTuple):
    """A trace beside what l2o makes of it; tensors in l2o's layout."""

    meta: dict[str, Any]
    trace: Any
    published: list[dict[str, np.ndarray]]  # parameters before and after each update
    history: list[dict[str, jax.Array]]  # parameters after each update
    state: Any  # l2o's state after the last
    tolerance: dict[str, float]  # per tensor


def replay(path: Path) -> Replay:
    """Makes the trace's updates with l2o.

    Raises:
      Unsupported: l2o lacks the class, an option or the layout of theta, or the trace
        has an entry that this script does not know.
    """
    with np.load(path, allow_pickle=False) as file:
        trace = dict(file)
    meta = json.loads(str(trace["meta"]))
    problem = (
        google_problem(meta, trace) if "cls" in meta else pylo_problem(meta, trace)
    )

    @jax.jit
    def step(theta, params, state, grads, loss):
        tx = problem.bind(theta)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, problem.published[0])
    state = problem.bind(problem.theta).init(params)
    history = []
    for t in range(meta["steps"]):
        grads = {name: jnp.asarray(g[t]) for name, g in problem.grads.items()}
        params, state = step(problem.theta, params, state, grads, problem.losses[t])
        history.append(params)
    return Replay(meta, trace, problem.published, history, state, problem.tolerance)


def differences(result: Replay) -> dict[str, tuple[float, float, float]]:
    """name -> (largest difference, tolerance, largest movement), over all updates."""
    out = {}
    for name, tolerance in result.tolerance.items():
        theirs = [params[name] for params in result.published]
        difference = max(
            _distance(np.asarray(ours[name]), their)
            for ours, their in zip(result.history, theirs[1:], strict=True)
        )
        moved = max(_distance(their, theirs[0]) for their in theirs)
        out[name] = (difference, tolerance, moved)
    return out


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """The largest difference; infinite where only one of the two is a number."""
    same = np.isnan(x) & np.isnan(y)
    gap = np.where(same, 0.0, np.abs(x.astype(np.float64) - y))
    return float(np.max(np.nan_to_num(gap, nan=np.inf), initial=0.0))


def main() -> int:
    parser = argparse.ArgumentParser(description="Replays recorded traces through l2o.")
    parser.add_argument("folders", nargs="+", type=Path)
    paths = [p for f in parser.parse_args().folders for p in sorted(f.rglob("*.npz"))]
    if not paths:
        print("no .npz files there", file=sys.stderr)
        return 2
    print("| trace | result | largest difference | its tolerance | movement |")
    print("|---|---|---|---|---|")
    failed = False
    for path in paths:
        try:
            found = differences(replay(path))
        except Unsupported as reason:
            print(f"| {path.stem} | unsupported: {reason} | | | |", flush=True)
            continue
        except Exception as error:  # one broken file must not hide the others
            words = " ".join(str(error).split())[:120]
            print(f"| {path.stem} | error: {words or error!r} | | | |", flush=True)
            failed = True
            continue
        worst = max(found.values(), key=lambda x: x[0] / x[1])
        ok = worst[0] <= worst[1]
        failed |= not ok
        print(
            f"| {path.stem} | {'ok' if ok else 'differs'} | {worst[0]:.1e} | "
            f"{worst[1]:.1e} | {worst[2]:.1e} |",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
