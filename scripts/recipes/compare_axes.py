"""Which axes are the matrix, and how tables move: final losses on training tasks.

    python scripts/recipes/compare_axes.py --out runs/axes
    python scripts/recipes/compare_axes.py --out runs/axes --tasks layouts-ratings \
        --variants vector adagrad Adam
    python scripts/recipes/compare_axes.py --out runs/axes --tasks layouts-heads \
        --variants adagrad per-head vector-heads

Trains the tasks with the weights at 0.5, 1 and 2 times their rate. The variants:
`last-two` takes the last two axes as the matrix; the others infer axes. `matrix`,
`vector` and `adagrad` are values of `embeddings`, of which the rest have the last.
`per-head` makes a matrix of every head of attention, `vector-heads` moves the last
layer in Adam's direction. `stacked-depthwise` makes a matrix of one column for every
channel of a convolution per channel, `vector-depthwise` moves it in Adam's direction.
`Adam` is optax's, at seven rates, half a decade apart. None of the tasks is held out.
What the folder has already is not made again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from search_rule import final_losses

import l2o
from l2o import Axes
from l2o.meta_train.cli import configure_process
from l2o.tasks import held_out, task_specs

TASKS = ("mixed-conv", "mixed-conv-layernorm", "mixed-vit", "mixed-transformer")
FACTORS = (0.5, 1.0, 2.0)
RATES = tuple(10.0 ** (0.5 * i) for i in range(-8, -1))  # of Adam, 1e-4 to 1e-1
VECTOR = Axes("vector")


def per_head(path: str, shape: tuple[int, ...]) -> Axes | None:
    """A matrix for every head, also of stacked layers and of a fused kernel."""
    *modules, last = path.split("/")
    if last != "kernel" or not modules:
        return None
    module = modules[-1]
    extra = len(shape) - (4 if module == "qkv" else 3)
    if module not in ("query", "key", "value", "qkv", "out") or extra not in (0, 1):
        return None
    layers = tuple(range(extra))
    if module == "out":  # (heads, head, model)
        return Axes("hidden", (extra + 1,), (extra + 2,), (*layers, extra))
    inner = tuple(range(extra + 1, len(shape) - 1))
    return Axes("hidden", (extra,), (len(shape) - 1,), (*layers, *inner))


def vector_heads(path: str, shape: tuple[int, ...]) -> Axes | None:
    return VECTOR if l2o.infer_axes(path, shape).role == "head" else None


def stacked_depthwise(path: str, shape: tuple[int, ...]) -> Axes | None:
    if "depthwise" not in path or len(shape) != 4:
        return None
    return Axes("hidden", (0, 1), (2,), (3,))


def vector_depthwise(path: str, shape: tuple[int, ...]) -> Axes | None:
    return VECTOR if "depthwise" in path and len(shape) == 4 else None


_ADAGRAD = {"axes": "inferred", "embeddings": "adagrad"}
VARIANTS: dict[str, dict[str, Any]] = {
    "last-two": {"axes": "last_two"},
    "matrix": {"axes": "inferred", "embeddings": "matrix"},
    "vector": {"axes": "inferred", "embeddings": "vector"},
    "adagrad": _ADAGRAD,
    "per-head": {**_ADAGRAD, "axes": per_head},
    "vector-heads": {**_ADAGRAD, "axes": vector_heads},
    "stacked-depthwise": {**_ADAGRAD, "axes": stacked_depthwise},
    "vector-depthwise": {**_ADAGRAD, "axes": vector_depthwise},
    "Adam": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="adaptive_muon")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="or suites")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=["last-two", "matrix", "vector", "adagrad"],
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table("task", "variant", *(f"{x:g} x rate" for x in FACTORS), box=None)
    table.title = f"mean final loss, n = {options.seeds}: training, outer_valid"
    for task, spec in task_specs(tuple(options.tasks)).items():
        if why := held_out(spec):
            raise ValueError(f"{task} is {why}: choose on tasks for training")
        for variant in options.variants:
            losses = _losses(options, task, spec, variant)
            means = losses.mean(1)
            cells = [f"{x:.4g} {y:.4g}" for x, y in means]
            if variant == "Adam":
                best = int(np.nanargmin(means[:, 0]))
                cells = [f"best {RATES[best]:.2g}:", cells[best], ""]
            table.add_row(task, variant, *cells)
            Console(width=100).print(task, variant, *cells, highlight=False)
    Console(width=100).print(table)


def _losses(options, task, spec, variant) -> np.ndarray:
    """(factors or rates, seeds, splits)."""
    path = options.out / f"{task}, {variant}, {options.steps}, {options.seeds}.json"
    if path.exists():
        return np.array(json.loads(path.read_text()))
    if variant == "Adam":
        numbers, transformation = RATES, _adam
    else:
        optimizer, theta = l2o.load_unbound(options.weights, **VARIANTS[variant])
        numbers = FACTORS

        def transformation(factor):
            tx = optimizer.bind(theta, num_steps=options.steps)
            return optax.chain(tx, optax.scale(factor))

    found = final_losses(
        spec.family(),
        transformation,
        jnp.array(numbers),
        jax.vmap(jax.random.key)(500 + jnp.arange(options.seeds)),
        steps=options.steps,
        eval_batches=32,
    )
    path.write_text(json.dumps(found.tolist()))
    return found


def _adam(rate):
    return optax.with_extra_args_support(optax.adam(rate))


if __name__ == "__main__":
    main()
