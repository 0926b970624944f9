"""How fast step sizes should adapt: `l2o.learnable_muon` on `train/mixed`.

    python scripts/recipes/search_gain.py
    python scripts/recipes/search_gain.py --steps 300 --families mixed-mlp mixed-vae

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

# (gain, drift, rate)
VARIANTS = (
    (0, 0, 0.03),
    (0, 0, 0.045),
    (0, 0, 0.02),
    (10, 0.5, 0.03),
    (20, 0, 0.03),
    (20, 0.4, 0.03),
    (20, 1, 0.03),
    (30, 0.6, 0.03),
    (30, 1.5, 0.03),
    (50, 2.5, 0.03),
    (20, 1, 0.02),
    (20, 1, 0.045),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=[SUITE])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for all losses")
    options = parser.parse_args()
    configure_process()
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
            jnp.array(VARIANTS, jnp.float32),
            jax.vmap(jax.random.key)(200 + jnp.arange(options.seeds)),
            steps=options.steps,
        )

    found = on_every_task(task_specs(tuple(options.families)), losses)
    names = [f"gain {k:g}, drift {d:g}, rate {a:g}" for k, d, a in VARIANTS]
    if options.out:
        content = {name: x.tolist() for name, x in found.items()}
        options.out.write_text(json.dumps({"variants": names, "losses": content}))
    print_ranks(names, found)
    print_better(names, found)


if __name__ == "__main__":
    main()
