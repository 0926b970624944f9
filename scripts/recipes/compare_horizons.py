"""Runs without a horizon beside runs with one: final losses on training tasks.

    python scripts/recipes/compare_horizons.py --out runs/horizons

Trains tasks of `train/mixed` with the weights: with `num_steps`; without, evaluated as
the parameters are and as their averages of several decays; without, and cooled down
over the last part; with half the steps, and extended by as many. None of the tasks is
held out. What the folder has already is not made again. The table has the mean over
seeds of the loss over that of the scheduled run, and the geometric mean over tasks.
"""

import argparse
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import l2o
from l2o.meta_train.cli import configure_process
from l2o.tasks import TaskFamily, task_specs

TASKS = (
    "mixed-mlp",
    "mixed-mlp-layernorm",
    "mixed-vae",
    "mixed-fourier",
    "mixed-conv",
    "mixed-gru",
)
DECAYS = (0.95, 0.98, 0.99, 0.995)
SPLITS = ("train", "outer_valid")
SCHEDULED = "scheduled"
BATCHES = 32  # behind every loss, the same for all variants


def runs(options: argparse.Namespace, bind: Any, factor: float, changes: Any) -> Any:
    """A function of family, data and key: losses by what is evaluated.

    Args:
      bind: from the number of steps, or None, to a transformation.
      factor: of its updates.
      changes: by the step before which each is applied, functions of the state.
    """

    def run(family: TaskFamily, data: Any, key: jax.Array) -> dict[str, jax.Array]:
        k_config, k_init, k_steps, k_eval = jax.random.split(key, 4)
        task = family.task(family.sample(k_config), data)
        tx = optax.chain(bind, optax.scale(factor))

        def loss(params, model_state, split):
            def one(key):
                k_batch, k_loss = jax.random.split(key)
                batch = task.batch(k_batch, split)
                return task.loss(params, model_state, k_loss, batch)[0]

            return jnp.mean(jax.lax.map(one, jax.random.split(k_eval, BATCHES)))

        def step(carry, t):
            params, model_state, state, averages = carry
            k_batch, k_loss = jax.random.split(jax.random.fold_in(k_steps, t))
            batch = task.batch(k_batch, "train")
            (value, (model_state, _)), grads = jax.value_and_grad(
                task.loss, has_aux=True
            )(params, model_state, k_loss, batch)
            updates, state = tx.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
            averages = [
                optax.incremental_update(params, x, 1 - d)
                for d, x in zip(DECAYS, averages, strict=True)
            ]
            return (params, model_state, state, averages), None

        params, model_state = task.init(k_init)
        carry = params, model_state, tx.init(params), [params] * len(DECAYS)
        marks = sorted({0, *changes, options.steps})
        for start, end in itertools.pairwise(marks):
            if start in changes:
                params, model_state, state, averages = carry
                carry = params, model_state, changes[start](state), averages
            carry, _ = jax.lax.scan(step, carry, jnp.arange(start, end))
        params, model_state, _, averages = carry
        found = {"": params}
        found |= {f", mean {d}": x for d, x in zip(DECAYS, averages, strict=True)}
        return {
            name: jnp.stack([loss(x, model_state, split) for split in SPLITS])
            for name, x in found.items()
        }

    return run


def variants(options: argparse.Namespace, optimizer: Any, theta: Any) -> dict[str, Any]:
    steps = options.steps
    half = steps // 2
    endless = optimizer.bind(theta)
    found = {
        SCHEDULED: runs(options, optimizer.bind(theta, num_steps=steps), 1.0, {}),
        "half, extended": runs(
            options,
            optimizer.bind(theta, num_steps=half),
            1.0,
            {half: lambda s: l2o.extend_run(s, steps - half)},
        ),
    }
    for part in options.tails:
        tail = int(part * steps)
        cool = functools.partial(l2o.cool_down, steps=tail)
        label = f"endless, cooled down over {part:g}"
        found[label] = runs(options, endless, 1.0, {steps - tail: cool})
    for factor in options.factors:
        found[f"endless x {factor:g}"] = runs(options, endless, factor, {})
    return found


def losses(options: argparse.Namespace, task: str) -> dict[str, np.ndarray]:
    """By variant and what is evaluated: (seeds, splits)."""
    optimizer, theta = l2o.load_unbound(options.weights)
    (spec,) = task_specs((task,)).values()
    family = spec.family()
    keys = jax.vmap(jax.random.key)(700 + jnp.arange(options.seeds))
    every = {}
    for label, run in variants(options, optimizer, theta).items():
        path = options.out / f"{task}, {label}.json"
        if not path.exists():

            @jax.jit
            def program(data, keys, run=run):
                return jax.lax.map(lambda key: run(family, data, key), keys)

            found = program(family.data, keys)
            path.write_text(json.dumps(jax.tree.map(lambda x: x.tolist(), found)))
            print(path.stem, flush=True)
        content = json.loads(path.read_text())
        every |= {label + name: np.array(x) for name, x in content.items()}
    return every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="adaptive_muon")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--tails", nargs="+", type=float, default=[0.2, 0.4])
    parser.add_argument("--factors", nargs="+", type=float, default=(1.0, 2.0))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {task: losses(options, task) for task in options.tasks}
    title = f"loss over the scheduled run's, n = {options.seeds}: train, valid"
    names = [x.removeprefix("mixed-") for x in options.tasks]
    table = Table("variant", *names, "all", title=title, box=None)
    for label in next(iter(found.values())):
        ratios = [x[label].mean(0) / x[SCHEDULED].mean(0) for x in found.values()]
        every = np.exp(np.mean(np.log(ratios), 0))
        cells = [" ".join(f"{x:.2f}" for x in row) for row in [*ratios, every]]
        table.add_row(label, *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
