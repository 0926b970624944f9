"""Weights under two versions of l2o, on `train/mixed`.

    python scripts/recipes/compare_versions.py run adaptive_muon --out old  # version 1
    python scripts/recipes/compare_versions.py run adaptive_muon --out new  # version 2
    python scripts/recipes/compare_versions.py compare old new

Final losses of the weights, their steps multiplied by every factor. Where theta has a
`log_decay`, the weight decay is multiplied, too. A task whose file is in the folder is
not run again, so a run that was stopped goes on.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from search_rule import SUITE, final_losses

import l2o
from l2o.meta_train.cli import configure_process
from l2o.tasks import task_specs

# Factors of the rate and of the weight decay; the first is what ships.
RATES = ((1, 1), (0.7, 1), (1.4, 1))
DECAYS = ((1, 1.5), (1, 0.66))
SPLITS = ("training", "outer_valid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("weights")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--steps", type=int, default=1000)
    run.add_argument("--seeds", type=int, default=4)
    run.set_defaults(do=_run)
    compare = commands.add_parser("compare")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    compare.set_defaults(do=_compare)
    options = parser.parse_args()
    options.do(options)


def _run(options: argparse.Namespace) -> None:
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    optimizer, theta = l2o.load_unbound(options.weights)
    keys = jax.vmap(jax.random.key)(100 + jnp.arange(options.seeds))

    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(theta)]
    variants = RATES + DECAYS * any(map(_is_decay, paths))

    # Weights of one architecture share programs: theta is an argument, too.
    factors, decays = jnp.array(variants, jnp.float32).T
    count = len(variants)
    thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), theta)
    numbers = (factors, decays, thetas)

    def transformation(numbers):
        factor, decay, theta = numbers
        changed = jax.tree_util.tree_map_with_path(
            lambda path, x: x + jnp.log(decay) * _is_decay(path), theta
        )
        tx = optimizer.bind(changed, num_steps=options.steps)
        return optax.chain(tx, optax.scale(factor))

    for name, spec in task_specs((SUITE,)).items():
        path = options.out / f"{name}.json"
        if path.exists():
            continue
        family = spec.family()
        losses = final_losses(
            family, transformation, numbers, keys, steps=options.steps
        )
        path.write_text(json.dumps(losses.tolist()))
        print(name, flush=True)


def _is_decay(path) -> bool:
    return getattr(path[-1], "key", None) == "log_decay"


def _compare(options: argparse.Namespace) -> None:
    """Per split, of every variant of the new version against the old one's first."""
    files = {x.name for x in options.old.iterdir()} & {
        x.name for x in options.new.iterdir()
    }

    def read(folder):
        found = [json.loads((folder / name).read_text()) for name in sorted(files)]
        return np.log(np.mean(found, 2))  # tasks, variants, splits

    old, new = read(options.old), read(options.new)
    for split, label in enumerate(SPLITS):
        difference = new[:, :, split] - old[:, :1, split]
        print(f"{label}, {len(files)} tasks: rate, decay; loss over the old; lower on")
        for variant, column in zip(RATES + DECAYS, difference.T, strict=False):
            ratio = np.exp(np.median(column))
            print(f"  {variant}  {ratio:.3f}  {np.sum(column < 0)}")


if __name__ == "__main__":
    main()
