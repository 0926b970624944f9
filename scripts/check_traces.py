"""Replays recorded outputs of published optimizers through l2o.

    python scripts/check_traces.py tests/traces [FOLDER ...]

A trace is an .npz file with a published class and its constructor arguments (`meta`),
its meta-parameters in the published tree (`theta/...`), gradients, losses, and the
parameters after every update. For each this prints `ok` or `differs` with the largest
difference and its tolerance, or `unsupported` with what is. The exit status is 1 if one
differs.

Tolerance of a tensor: 2e-6 absolute plus 20 times the trace's own noise, which is how
far the published code moves its own result when gradients change by 1e-7 relative, or
when it runs without jit. That is round-off amplified by the updates; a wrong epsilon,
feature order or axis is orders of magnitude above it.
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

import l2o


class Replay(NamedTuple):
    """A trace beside what l2o makes of it."""

    meta: dict[str, Any]
    trace: Any
    history: list[dict[str, jax.Array]]  # parameters after each update
    state: Any  # l2o's state after the last


class Unsupported(Exception):
    """l2o has no such class or option."""


def optimizer_and_theta(meta: dict[str, Any], trace: Any) -> tuple[Any, Any]:
    """The l2o optimizer of a published class, and theta in l2o's tree."""
    name = meta.get("cls", meta.get("optimizer", "?")).rsplit(".")[-1]
    if name not in ("MLPLOpt", "AdafacMLPLOpt"):
        raise Unsupported(f"class {name}")
    config = dict(meta["config"])
    # Without effect on the numbers: diagnostics, and the layout of the same weights.
    for key in ("compute_summary", "concat_weights"):
        config.pop(key, None)
    arguments = {
        key.removeprefix("initial_"): value
        for key, value in config.items()
        if value is not None
    }
    theta: dict[str, Any] = {"nn": {}}
    for key in (k for k in trace.files if k.startswith("theta/")):
        *_, parent, leaf = key.split("/")
        value = jnp.asarray(trace[key])
        if parent == "~":
            theta["nn"][leaf] = value
        elif parent.startswith("linear_"):
            theta["nn"][leaf + parent.removeprefix("linear_")] = value
        else:
            theta[leaf] = value
    factory = "mlp" if name == "MLPLOpt" else "small_fc"
    try:
        optimizer = l2o.make(factory, **arguments)
    except ValueError as error:
        raise Unsupported(str(error)) from error
    expected = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    if jax.tree.structure(theta) != jax.tree.structure(expected):
        raise Unsupported(f"theta's layout {sorted(theta['nn'])}")
    return optimizer, theta


def replay(path: Path) -> Replay:
    """Makes the trace's updates with l2o.

    Raises:
      Unsupported: l2o lacks the class, an option or the layout of theta.
    """
    trace = np.load(path, allow_pickle=False)
    meta = json.loads(str(trace["meta"]))
    optimizer, theta = optimizer_and_theta(meta, trace)
    names = meta["leaf_order"]

    @jax.jit
    def step(theta, params, state, grads, loss):
        tx = optimizer.bind(theta, num_steps=meta["num_steps"])
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = {name: jnp.asarray(trace[f"params/0/{name}"]) for name in names}
    state = optimizer.bind(theta, num_steps=meta["num_steps"]).init(params)
    history = []
    for t in range(meta["steps"]):
        grads = {name: jnp.asarray(trace[f"grads/{name}"][t]) for name in names}
        params, state = step(theta, params, state, grads, trace["loss"][t])
        history.append(params)
    return Replay(meta, trace, history, state)


def tolerance(meta: dict[str, Any], name: str) -> float:
    """Of the tensor `name`; see the module's docstring."""
    noise = [meta[f"noise_floor_{k}"][name] for k in ("1e7_grad", "eager_vs_jit")]
    return 2e-6 + 20 * max(noise)


def differences(result: Replay) -> dict[str, tuple[float, float, float]]:
    """name -> (largest difference, tolerance, largest movement), over all updates."""
    out = {}
    for name in result.meta["leaf_order"]:
        theirs = [
            result.trace[f"params/{t}/{name}"] for t in range(len(result.history) + 1)
        ]
        difference = max(
            float(np.max(np.abs(np.asarray(ours[name]) - their)))
            for ours, their in zip(result.history, theirs[1:], strict=True)
        )
        moved = max(float(np.max(np.abs(their - theirs[0]))) for their in theirs)
        out[name] = (difference, tolerance(result.meta, name), moved)
    return out


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
            print(f"| {path.stem} | unsupported: {reason} | | | |")
            continue
        worst = max(found.values(), key=lambda x: x[0] / x[1])
        ok = worst[0] <= worst[1]
        failed |= not ok
        print(
            f"| {path.stem} | {'ok' if ok else 'differs'} | {worst[0]:.1e} | "
            f"{worst[1]:.1e} | {worst[2]:.1e} |"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
