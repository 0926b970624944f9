"""What NaNs, batch sizes, bfloat16 and accumulation do: final losses.

    python scripts/recipes/compare_hazards.py --out runs/hazards
    python scripts/recipes/compare_hazards.py --out runs/hazards --only nan

Trains the task `mixed-mlp` of `train/mixed`. `nan`: every optimizer that ships, with a
whole gradient of NaN in 3 of 1000 steps and without. `batch`: batches of 4 to 1024,
large ones on `mixed-gru`, beside Adam at its best of four rates. `precision`:
parameters that are kept in bfloat16, and ones in float32 that losses see in bfloat16.
`accumulate`: four micro-batches beside one batch of that size, in a quarter of the
updates. What the folder has already is not made again.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from search_rule import final_losses

import l2o
from l2o.meta_train.cli import configure_process
from l2o.tasks import TaskFamily, held_out, task_specs

TASK = "mixed-mlp"
NANS = (0.0, 0.003)
LARGE_DATA = "mixed-gru"  # of whose data there are thousands of examples
BATCHES = ((TASK, 4), (TASK, 32), (TASK, 128), (LARGE_DATA, 16), (LARGE_DATA, 1024))
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def family(
    task: str = TASK,
    batch_size: int | None = None,
    kept: Any = jnp.float32,
    used: Any = jnp.float32,
) -> TaskFamily:
    """A task, with parameters kept in one type, and rounded to another in losses."""
    (spec,) = task_specs((task,)).values()
    assert held_out(spec) is None
    if batch_size is not None:
        changed = {**spec.options, "batch_size": batch_size}
        spec = dataclasses.replace(spec, options=changed)
    made = spec.family()
    if kept == used == jnp.float32:
        return made

    def task(config, data):
        plain = made.task(config, data)

        def init(key):
            params, model_state = plain.init(key)
            return optax.tree.cast(params, kept), model_state

        def loss(params, *rest):
            rounded = optax.tree.cast(params, used)
            return plain.loss(optax.tree.cast(rounded, jnp.float32), *rest)

        return plain._replace(init=init, loss=loss)

    return made._replace(task=task)


def with_nans(
    tx: optax.GradientTransformationExtraArgs, probability: jax.Array
) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, **extra_args):
        key = jax.random.fold_in(jax.random.key(5), state[0])
        bad = jax.random.bernoulli(key, probability)
        updates = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), updates)
        updates, inner = tx.update(updates, state[1], params, **extra_args)
        return updates, (state[0] + 1, inner)

    def init(params):
        return jnp.zeros([], jnp.int32), tx.init(params)

    return optax.GradientTransformationExtraArgs(init, update)


def programs(steps: int) -> dict[str, Any]:
    """By name: a function of keys, to losses of shape (variants, keys, splits)."""
    found = {}

    def add(name, family, numbers, transformation, steps=steps):
        def program(keys):
            numbers_ = jnp.array(numbers)
            return final_losses(family(), transformation, numbers_, keys, steps=steps)

        found[name] = program

    for name in l2o.shipped():
        tx = l2o.load(name, num_steps=steps)
        add(f"nan, {name}", family, NANS, lambda p, tx=tx: with_nans(tx, p))
    adam = optax.inject_hyperparams(optax.adam)
    for task, n in BATCHES:
        of_size = functools.partial(family, task, n)
        tx = l2o.load("adaptive_muon", num_steps=steps)
        add(f"batch {n}, {task}, adaptive_muon", of_size, (1.0,), lambda _, tx=tx: tx)
        add(f"batch {n}, {task}, adam", of_size, ADAM_RATES, adam)
    optimizer, theta = l2o.load_unbound("adaptive_muon")
    wide = l2o.float32_updates(optimizer)
    f32, bf16 = jnp.float32, jnp.bfloat16
    for label, kept, used, made in (
        ("float32", f32, f32, optimizer),
        ("float32, bfloat16 in losses", f32, bf16, optimizer),
        ("bfloat16", bf16, bf16, optimizer),
        ("bfloat16, wide updates", bf16, bf16, wide),
    ):
        tx = made.bind(theta, num_steps=steps)
        rounded = functools.partial(family, TASK, None, kept, used)
        add(f"precision {label}", rounded, (1.0,), lambda _, tx=tx: tx)
    updates = steps // 80 * 20
    tx = l2o.load("adaptive_muon", num_steps=updates)
    many = optax.MultiSteps(tx, 4).gradient_transformation()
    for label, n, made, length in (
        ("4 x 32", 32, many, 4 * updates),
        ("1 x 128", 128, tx, updates),
    ):
        of_size = functools.partial(family, TASK, n)
        run = lambda _, made=made: made
        add(f"accumulate, {label}", of_size, (1.0,), run, steps=length)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="what names of programs begin with")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    keys = jax.vmap(jax.random.key)(900 + jnp.arange(options.seeds))
    table = Table("program", "train", "outer_valid", box=None)
    table.title = f"final losses, mean and spread of n = {options.seeds} seeds"
    for name, program in programs(options.steps).items():
        if not name.startswith(options.only):
            continue
        path = options.out / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(program(keys).tolist()))
            print(name, flush=True)
        for i, row in enumerate(np.array(json.loads(path.read_text()))):
            pairs = zip(row.mean(0), row.std(0), strict=True)
            cells = [f"{mean:.4f} +- {std:.4f}" for mean, std in pairs]
            table.add_row(f"{name}, {i}", *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
