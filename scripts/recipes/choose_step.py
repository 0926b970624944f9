"""Weights at several step sizes, on `train/mixed`.

    python scripts/recipes/choose_step.py OUT/frozen --factors 0.5 1
    python scripts/recipes/choose_step.py OUT/frozen adaptive_muon --factors 0.7 1 1.4
    python scripts/recipes/choose_step.py OUT/frozen --steps 200 --families train/fast

What the first began with (as drawn with seed 0) and the weights of every folder or
name, their steps multiplied by every factor: which of them lowers the final losses on
two splits of tasks for training. Six variants take three minutes on two cores.
`small_fc_mixed` and `muon_mixed` were chosen by it.
"""

import argparse
import functools

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", help="folders, as `l2o.load` takes them")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.33, 0.5, 0.7, 1])
    parser.add_argument("--families", nargs="+", default=[SUITE])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    configure_process()

    weights = {name: l2o.load_unbound(name) for name in options.weights}
    optimizer, _ = weights[options.weights[0]]
    weights = {"start": (optimizer, optimizer.init_theta(jax.random.key(0))), **weights}
    keys = jax.vmap(jax.random.key)(100 + jnp.arange(options.seeds))

    def losses(family: TaskFamily) -> np.ndarray:
        def scaled(optimizer, theta, factor):
            rule = optimizer.bind(theta, num_steps=options.steps)
            return optax.chain(rule, optax.scale(factor))

        found = [
            final_losses(
                family,
                functools.partial(scaled, optimizer, theta),
                jnp.array(options.factors),
                keys,
                steps=options.steps,
                eval_batches=4,
            )
            for optimizer, theta in weights.values()
        ]
        return np.concatenate(found)

    found = on_every_task(task_specs(tuple(options.families)), losses)
    variants = [f"{name} x {f:g}" for name in weights for f in options.factors]
    print_ranks(variants, found)
    print_better(variants, found)


if __name__ == "__main__":
    main()
