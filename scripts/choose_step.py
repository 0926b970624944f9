"""Weights of one architecture at several step sizes, on `train/mixed`.

    python scripts/choose_step.py runs/mine/frozen --factors 0.5 1
    python scripts/choose_step.py runs/mine/frozen --steps 200 --families train/fast

The weights that meta-training began with (as drawn with seed 0) and those of every
folder, their steps multiplied by every factor: which of them lowers the final losses on
two splits of tasks for training. One program per task serves them all; six variants
take three minutes on two cores. `small_fc_mixed` was chosen by it.
"""

import argparse

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
from l2o.meta_train._machine import keep
from l2o.tasks import TaskFamily, resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", help="folders, as `l2o.load` takes them")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.33, 0.5, 0.7, 1])
    parser.add_argument("--families", nargs="+", default=[SUITE])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    keep()

    optimizer, _ = l2o.load_theta(options.weights[0])
    thetas = {"start": optimizer.init_theta(jax.random.key(0))}
    for name in options.weights:
        thetas[name] = l2o.load_theta(name, optimizer=optimizer)[1]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *thetas.values())
    chosen = [(i, f) for i in range(len(thetas)) for f in options.factors]

    def transformation(numbers):
        index, factor = numbers
        theta = jax.tree.map(lambda x: x[index], stacked)
        rule = optimizer.bind(theta, num_steps=options.steps)
        return optax.chain(rule, optax.scale(factor))

    def losses(family: TaskFamily) -> np.ndarray:
        return final_losses(
            family,
            transformation,
            tuple(map(jnp.array, zip(*chosen, strict=True))),
            jax.vmap(jax.random.key)(100 + jnp.arange(options.seeds)),
            steps=options.steps,
            eval_batches=4,
        )

    found = on_every_task(resolve(tuple(options.families)), losses)
    names = list(thetas)
    variants = [f"{names[i]} x {f:g}" for i, f in chosen]
    print_ranks(variants, found)
    print_better(variants, found)


if __name__ == "__main__":
    main()
