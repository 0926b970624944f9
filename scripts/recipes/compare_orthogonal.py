"""How exactly to orthogonalise, and with how much state: losses on training tasks.

    python scripts/recipes/compare_orthogonal.py --out runs/orthogonal
    python scripts/recipes/compare_orthogonal.py --out runs/orthogonal --tasks gpt

Trains small models of `train/mixed` and a byte-level GPT of 1.8 million parameters on
the code that training uses, with the weights at their own rate. None of the tasks is
held out. What the folder has already is not made again.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import l2o
from l2o.meta_train.cli import configure_process
from l2o.meta_train.evaluation import learning_curve
from l2o.tasks import TaskSpec, task_specs

TASKS = ("mixed-mlp", "mixed-conv", "mixed-transformer", "mixed-gru", "gpt")
GPT = TaskSpec(
    "language_model",
    {
        "model": "transformer",
        "options": {"width": 192, "heads": 6, "layers": 4},
        "datasets": ("python_code",),
        "length": 64,
        "batch_size": 16,
    },
)
SPLITS, POINTS = ("train", "outer_valid"), 3
VARIANTS = {
    "newton_schulz, 10 bytes": {"orthogonal": "newton_schulz", "state_bytes": 10},
    "rational, 10 bytes": {"orthogonal": "rational", "state_bytes": 10},
    "rational, 8 bytes": {"orthogonal": "rational", "state_bytes": 8},
    "rational, 6 bytes": {"orthogonal": "rational", "state_bytes": 6},
    "bf16, 8 bytes": {"orthogonal": "newton_schulz_bf16", "state_bytes": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="adaptive_muon")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=100)
    table = Table("task", "variant", *SPLITS, "n", box=None)
    for task in options.tasks:
        for variant in options.variants:
            ends = np.array(
                [_ends(options, task, variant, i) for i in range(options.seeds)]
            )
            cells = [f"{m:.4f}" for m in ends.mean(0)]
            table.add_row(task, variant, *cells, str(options.seeds))
            console.print(task, variant, *cells, highlight=False)
    console.print(table)


def _ends(
    options: argparse.Namespace, task: str, variant: str, seed: int
) -> list[float]:
    """Final losses, one per split."""
    path = options.out / f"{task}, {variant}, {seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    spec = GPT if task == "gpt" else next(iter(task_specs((task,)).values()))
    steps = 800 if task == "gpt" else 1000
    family = spec.family()
    optimizer, theta = l2o.load_unbound(
        options.weights, axes="inferred", embeddings="adagrad", **VARIANTS[variant]
    )
    tx = optimizer.bind(theta, num_steps=steps)

    @jax.jit
    def run(data, key):
        return learning_curve(
            tx,
            family,
            data,
            key,
            steps=steps,
            eval_every=steps // 20,
            eval_batches=8,
            splits=SPLITS,
        )

    curves = run(family.data, jax.random.key(900 + seed))
    found = [float(np.mean(curves[split]["loss"][-POINTS:])) for split in SPLITS]
    path.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
