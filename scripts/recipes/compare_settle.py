"""How much steps are to shorten where gradients vanish: losses on training tasks.

    python scripts/recipes/compare_settle.py --out runs/settle

Trains each task of the suites under shipped weights of `learnable_muon`, with several
powers of `settle`, and says what the losses at the end are, over those at a power of
zero: means over tasks of the ratio's logarithm. None of the tasks is held out. What the
folder has already is not made again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import l2o
from l2o.meta_train.cli import configure_process
from l2o.meta_train.evaluation import learning_curve
from l2o.tasks import TaskSpec, task_specs

SPLITS, POINTS = ("train", "outer_valid"), 3
LEAST = 1e-4  # losses below count as this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="adaptive_muon")
    parser.add_argument("--suites", nargs="+", default=["train/mixed", "train/layouts"])
    parser.add_argument("--powers", nargs="+", type=float, default=[0, 0.5, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    if options.powers[0] != 0:
        parser.error("give 0 as the first of --powers: it is what others stand over")
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=100)
    found = {}
    for name, spec in task_specs(tuple(options.suites)).items():
        path = options.out / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(_losses(options, spec)))
        found[name] = np.array(json.loads(path.read_text())).mean(1)  # power, split
        shown = " ".join(f"{x:.4f}" for x in found[name].T.ravel())
        console.print(f"{name}: {', '.join(SPLITS)} by power: {shown}", highlight=False)
    console.print(_summary(options.powers, np.stack(list(found.values()))))


def _losses(options: argparse.Namespace, spec: TaskSpec) -> list:
    """Final losses by power, seed and split."""
    family = spec.family()
    optimizer, theta = l2o.load_unbound(options.weights)

    def run(power, key):
        learned = {**theta["learned"], "settle": power}
        tx = optimizer.bind({**theta, "learned": learned}, num_steps=options.steps)
        return learning_curve(
            l2o.without_skipping(tx),  # many runs under one vmap
            family,
            data,
            key,
            steps=options.steps,
            eval_every=options.steps // 20,
            eval_batches=8,
            splits=SPLITS,
        )

    data = family.data
    keys = jax.random.split(jax.random.key(900), options.seeds)
    runs = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    curves = jax.jit(runs)(jnp.float32(options.powers), keys)
    ends = [np.asarray(curves[x]["loss"])[..., -POINTS:].mean(-1) for x in SPLITS]
    return np.stack(ends, -1).tolist()


def _summary(powers: Sequence[float], losses: np.ndarray) -> Table:
    """Of losses (task, power, split)."""
    logs = np.log(np.maximum(losses, LEAST))
    logs -= logs[:, :1]
    table = Table("power", *(f"{x} {y}" for x in SPLITS for y in ("ratio", "better")))
    for i, power in enumerate(powers):
        cells = []
        for split in range(len(SPLITS)):
            better = (logs[:, i, split] < 0).sum()
            mean = np.exp(logs[:, i, split].mean())
            cells += [f"{mean:.3f}", f"{better} of {len(logs)}"]
        table.add_row(f"{power:g}", *cells)
    return table


if __name__ == "__main__":
    main()
