"""How fast step sizes should adapt: `l2o.learnable_muon` on `train/mixed`.

    python scripts/recipes/search_gain.py
    python scripts/recipes/search_gain.py --steps 300 --families mixed-mlp mixed-vae
    python scripts/recipes/search_gain.py --families train/mixed train/layouts \
        --out FOLDER --first 6

The numbers of `adaptive_muon`; what differs is gain and drift, which are
meta-parameters, and the rate. Gain 0 stands for steps that do not adapt. All tasks of
the suite, two splits; one program per task serves all variants. `adaptive_muon` was
chosen by it, as `normalized_orthogonal` in `l2o.hypergradient`.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from search_rule import (
    SUITE,
    final_losses,
    on_every_task,
    print_better,
    print_ranks,
)

import l2o
from l2o.meta_train.cli import configure_process
from l2o.tasks import TaskFamily, task_specs

# (gain, drift, rate); what ships and its neighbours first
VARIANTS = (
    (20, 1, 0.03),
    (20, 1, 0.02),
    (20, 1, 0.045),
    (10, 0.5, 0.03),
    (30, 1.5, 0.03),
    (0, 0, 0.03),
    (0, 0, 0.045),
    (0, 0, 0.02),
    (20, 0, 0.03),
    (20, 0.4, 0.03),
    (30, 0.6, 0.03),
    (50, 2.5, 0.03),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=[SUITE])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, help="so many variants; default: all")
    parser.add_argument("--out", type=Path, help="folder for losses; a run goes on")
    options = parser.parse_args()
    configure_process()
    variants = VARIANTS[: options.first]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    optimizer, start = l2o.load_unbound("adaptive_muon", learning_rate=1.0)

    def transformation(numbers):
        gain, drift, rate = numbers
        numbers = {"log_gain": jnp.log(gain), "drift": drift}
        theta = {**start, **numbers}
        tx = optimizer.bind(theta, num_steps=options.steps)
        return optax.chain(tx, optax.scale(rate))

    def losses(family: TaskFamily) -> np.ndarray:
        return final_losses(
            family,
            transformation,
            jnp.array(variants, jnp.float32),
            jax.vmap(jax.random.key)(200 + jnp.arange(options.seeds)),
            steps=options.steps,
        )

    def kept(family: TaskFamily) -> np.ndarray:
        if options.out is None:
            return losses(family)
        path = options.out / f"{family.name}.json"
        if not path.exists():
            path.write_text(json.dumps(losses(family).tolist()))
        return np.array(json.loads(path.read_text()))

    found = on_every_task(task_specs(tuple(options.families)), kept)
    names = [f"gain {k:g}, drift {d:g}, rate {a:g}" for k, d, a in variants]
    print_ranks(names, found)
    print_better(names, found)


if __name__ == "__main__":
    main()
