"""What `l2o.compact` does to memory, time, steps and final losses.

    python scripts/benchmarks/precision_table.py [FOLDER ...]

FOLDERs hold frozen optimizers beside the one that l2o ships. Every variant sees the
same seeds: tasks, initialisations and batches. Printed per optimizer and variant: bytes
of state per parameter and the time of an update of one 2048 x 2048 matrix over that of
the optimizer as it is (medians of steps, taking turns); and per task how far the
parameters are from where they would be after ten steps, over how far they have moved,
and the final training loss, over that of the optimizer as it is (mean over seeds,
smallest to largest).
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o.meta_train import inner_init, unroll
from l2o.meta_train.evaluation import learning_curve
from l2o.tasks import TaskFamily, make_family

VARIANTS: dict[str, Any] = {
    "nearest": {"momentum": "nearest"},
    "stochastic": {"momentum": "stochastic"},
    "factored": {"momentum": "float32", "second_moment": "factored"},
    "stochastic, factored": {"momentum": "stochastic", "second_moment": "factored"},
}
SIDE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*")
    parser.add_argument(
        "--tasks", nargs="+", default=["mlp32-digits", "transformer-docs"]
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    families = [make_family(name) for name in options.tasks]
    folders = ["small_fc_digits", *options.folders]
    columns = ["B/param", "time"]
    for task in options.tasks:
        columns += [f"{task}: after 10", f"after {options.steps}"]
    print(f"| optimizer | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for folder in folders:
        optimizer, theta = l2o.load_unbound(folder)
        variants = {"as it is": optimizer} | {
            name: l2o.compact(optimizer, **kinds) for name, kinds in VARIANTS.items()
        }
        bound = {
            name: variant.bind(theta, num_steps=options.steps)
            for name, variant in variants.items()
        }
        sizes, times = updates(bound)
        cells = {name: [f"{sizes[name]:.1f}", times[name]] for name in bound}
        for family in families:
            for name, found in losses(bound, family, options).items():
                cells[name] += found
        for name, row in cells.items():
            print(f"| {optimizer.name}, {name} | {' | '.join(row)} |", flush=True)


def updates(bound: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Bytes of state per parameter; times of an update as ratios."""
    params = {"w": 0.1 * jax.random.normal(jax.random.key(0), (SIDE, SIDE))}
    grads = {"w": jax.random.normal(jax.random.key(1), (SIDE, SIDE))}
    programs, states, sizes = {}, {}, {}
    for name, tx in bound.items():

        def step(params, state, grads, tx=tx):
            updates, state = tx.update(grads, state, params, value=jnp.float32(1))
            return optax.apply_updates(params, updates), state

        state = jax.jit(tx.init)(params)
        sizes[name] = sum(x.nbytes for x in jax.tree.leaves(state)) / SIDE**2
        # A buffer that is donated is gone.
        states[name] = jax.tree.map(jnp.array, params), state
        programs[name] = jax.jit(step, donate_argnums=(0, 1))
    seconds: dict[str, list[float]] = {name: [] for name in bound}
    for _ in range(21):
        for name, program in programs.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(program(*states[name], grads))
            seconds[name].append(time.perf_counter() - start)
    baseline = np.array(seconds["as it is"][1:])
    ratios = {
        name: np.median(np.array(x[1:]) / baseline) for name, x in seconds.items()
    }
    return sizes, {name: f"{ratio:.2f}" for name, ratio in ratios.items()}


def losses(
    bound: dict[str, Any], family: TaskFamily, options: argparse.Namespace
) -> dict[str, list[str]]:
    """Distance after ten steps and final loss, in units of the first variant's."""

    def runs(tx):
        def one(seed):
            key = jax.random.key(seed)
            curve = learning_curve(
                tx,
                family,
                family.data,
                key,
                steps=options.steps,
                eval_every=options.steps,
                eval_batches=20,
                splits=("train",),
            )
            return curve["train"]["loss"][-1], *ten_steps(tx, family, key)

        return jax.jit(lambda seeds: jax.lax.map(one, seeds))(jnp.arange(options.seeds))

    found = {name: jax.device_get(runs(tx)) for name, tx in bound.items()}
    expected_loss, start, expected = found["as it is"]
    cells = {}
    for name, (loss, _, end) in found.items():
        apart = np.linalg.norm(end - expected, axis=1)
        apart = np.mean(apart / np.linalg.norm(expected - start, axis=1))
        ratio = loss / expected_loss
        text = f"{np.mean(ratio):.3f} ({np.min(ratio):.3f} to {np.max(ratio):.3f})"
        if name == "as it is":
            text = f"{np.mean(loss):.3g}"
        cells[name] = [f"{apart:.1e}", text]
    return cells


def ten_steps(tx, family, key):
    """Parameters before and after ten steps, as vectors."""
    k_config, k_init, k_steps = jax.random.split(key, 3)
    task = family.task(family.sample(k_config), family.data)
    start = inner_init(tx, task, k_init)
    end, _ = unroll(tx, task, start, k_steps, jnp.arange(10))
    return tuple(
        jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(state.params)])
        for state in (start, end)
    )


if __name__ == "__main__":
    main()
