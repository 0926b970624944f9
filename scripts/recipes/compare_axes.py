"""Which axes are the matrix: final losses on training tasks with such layouts.

    python scripts/recipes/compare_axes.py --out runs/axes

Trains the tasks of `train/mixed` that have tensors of three axes or more, or tables of
embeddings, with the weights at 0.5, 1 and 2 times their rate: with the last two axes as
the matrix, with inferred axes, and with inferred axes and tables as vectors. None of
the tasks is held out. What the folder has already is not made again.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from search_rule import final_losses

import l2o
from l2o.meta_train.cli import configure_process
from l2o.tasks import task_specs

TASKS = ("mixed-conv", "mixed-conv-layernorm", "mixed-vit", "mixed-transformer")
FACTORS = (0.5, 1.0, 2.0)
VARIANTS = {
    "last two": {"axes": "last_two"},
    "inferred": {"axes": "inferred"},
    "inferred, tables as vectors": {"axes": "inferred", "embeddings": "vector"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="adaptive_muon")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table("task", "axes", *(f"{x:g} x rate" for x in FACTORS), box=None)
    table.title = f"mean final loss, n = {options.seeds}: training, outer_valid"
    for task in options.tasks:
        for label, arguments in VARIANTS.items():
            losses = _losses(options, task, label, arguments)
            cells = [" ".join(f"{x:.3f}" for x in row) for row in losses.mean(1)]
            table.add_row(task, label, *cells)
    Console(width=100).print(table)


def _losses(options, task, label, arguments) -> np.ndarray:
    """(factors, seeds, splits)."""
    path = options.out / f"{task}, {label}.json"
    if path.exists():
        return np.array(json.loads(path.read_text()))
    optimizer, theta = l2o.load_unbound(options.weights, **arguments)
    (spec,) = task_specs((task,)).values()

    def transformation(factor):
        tx = optimizer.bind(theta, num_steps=options.steps)
        return optax.chain(tx, optax.scale(factor))

    found = final_losses(
        spec.family(),
        transformation,
        jnp.array(FACTORS),
        jax.vmap(jax.random.key)(500 + jnp.arange(options.seeds)),
        steps=options.steps,
    )
    path.write_text(json.dumps(found.tolist()))
    return found


if __name__ == "__main__":
    main()
