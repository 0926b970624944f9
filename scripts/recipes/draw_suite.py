"""Draws the tasks of train/broad and writes the file that keeps them.

    python scripts/recipes/draw_suite.py tasks/suites/train_broad.json

Two of every distribution, under a budget per inner step, with VeLO's augmentations.
"""

import json
import sys
from pathlib import Path

import jax

from l2o.tasks import DISTRIBUTIONS, sample_spec, within

SEED, EACH, VERSION = 0, 2, 1
# XLA does not see how often a loop runs, a clock does: the last bound is generous.
BUDGET = {
    "parameters": 3e4, "tensors": 48, "flops": 3e7, "bytes": 5e7, "seconds": 5e-3
}  # fmt: skip
LARGE = ("transformer_lm",)  # VeLO's smallest exceeds the budget


def main() -> None:
    """Writes the file named on the command line."""
    tasks = {}
    kinds = [kind for kind in DISTRIBUTIONS if kind not in LARGE]
    for i, kind in enumerate(kinds):
        for j in range(EACH):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), i), j)
            name = f"broad-{kind.replace('_', '-')}-{j}"
            spec = sample_spec(key, [kind], augment=True, accept=within(**BUDGET))
            tasks[name] = {**spec.to_dict(), "label": name}
            print(name, [a.name for a in spec.augmentations], flush=True)
    content = {"version": VERSION, "seed": SEED, "tasks": tasks}
    Path(sys.argv[1]).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
