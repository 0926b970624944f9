"""The outer learning rate of the preset `demo`, by tasks for training.

    python scripts/recipes/choose_demo.py --out runs/choose_demo

Meta-trains the preset at every rate and seed. Then it trains tasks of `train/mixed`
with each theta, and with the theta that meta-training starts from, for as many steps as
the demo does. It prints losses over those of the start. None of these tasks is held
out. What the folder has already is not made again.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from search_rule import SUITE, final_losses

import l2o
from l2o.meta_train import Topology, presets, run
from l2o.meta_train.cli import configure_process, share_cores
from l2o.tasks import task_specs

TASKS = ("mixed-mlp", "mixed-conv", "mixed-autoencoder", "mixed-transformer")
SPLITS = ("training", "outer_valid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2, help="runs per task and theta")
    options = parser.parse_args()
    demo = presets.load("demo")
    configure_process()
    share_cores(demo.meta_train.particles, Topology())
    optimizer = l2o.make(demo.meta_train.optimizer, **demo.meta_train.optimizer_options)
    thetas = [optimizer.init_theta(jax.random.key(0))]
    for rate in options.rates:
        for seed in range(options.seeds):
            config = dataclasses.replace(demo.meta_train, outer_lr=rate, seed=seed)
            folder = options.out / f"{rate:g}-{seed}"
            result = run(config, folder, console=Console(markup=False))
            if not result.completed:
                return  # a signal ended it; the same command goes on
            thetas.append(l2o.load_unbound(result.frozen)[1])
    found = {}
    for name in TASKS:
        path = options.out / f"{name}.json"
        if not path.exists():
            losses = _losses(
                name, optimizer, thetas, options.draws, demo.evaluation.steps
            )
            path.write_text(json.dumps(losses.tolist()))
        # Over draws; (thetas, splits).
        found[name] = np.log(np.array(json.loads(path.read_text()))).mean(1)
    _print(found, options.rates, options.seeds)


def _losses(name, optimizer, thetas, draws, steps) -> np.ndarray:
    (spec,) = task_specs((name,)).values()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)
    keys = jax.vmap(jax.random.key)(300 + jnp.arange(draws))
    bind = lambda theta: optimizer.bind(theta, num_steps=steps)
    return final_losses(spec.family(), bind, stacked, keys, steps=steps)


def _print(found, rates, seeds) -> None:
    table = Table("task", "split", *(f"{rate:g}" for rate in rates), box=None)
    table.title = f"final loss over that of the start, {SUITE}; each seed's"
    totals = []
    for name, logs in found.items():
        ratios = (logs[1:] - logs[:1]).reshape(len(rates), seeds, len(SPLITS))
        totals.append(ratios.mean(1))
        for i, split in enumerate(SPLITS):
            cells = [" ".join(f"{x:.2f}" for x in np.exp(r[:, i])) for r in ratios]
            table.add_row(name, split, *cells)
    for i, split in enumerate(SPLITS):
        mean = np.exp(np.mean(totals, 0)[:, i])
        table.add_row("geometric mean", split, *(f"{x:.3f}" for x in mean))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
