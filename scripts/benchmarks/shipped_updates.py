"""What an update of every shipped optimizer costs: beside Adam's, and of a whole step.

    python scripts/benchmarks/shipped_updates.py --out docs/data/update_costs.csv
    python scripts/benchmarks/shipped_updates.py --out FILE --sizes 1e8

Gradients are given, parameters and state donated. At each size all programs take turns,
step by step, in one process; at 1e8, where they would not fit in memory together, each
takes turns with Adam alone. Per optimizer: the median over steps of the ratio to the
Adam step before it, its quartiles, and the share that the update has in a training step
of a thousand, 8 and 64 thousand tokens. A training step is reckoned, not run: six
operations per parameter and token, as fast as the products of matrices that are timed
in the same run. Rows of sizes that are not run stay in the file.
"""

import argparse
import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_update import MIXED, Program, clocks, draw

import l2o

SIZES = {
    "1e4": ({"w0": (64, 64), "w1": (64, 64), "w2": (64, 32), "b": (64,)}, 300),
    "1e6": ({**{f"w{i}": (512, 512) for i in range(4)}, "b": (512,)}, 60),
    "1e7": (MIXED, 12),
    "1e8": ({f"w{i}": (4096, 4096) for i in range(6)}, 2),
}
TOKENS = (1024, 8192, 65536)
COLUMNS = ("optimizer", "parameters", "times_adam", "low", "high")
SHARES = tuple(f"share_{tokens // 1024}k" for tokens in TOKENS)
TOUCHES = 2  # first steps, which touch new memory


def transformations() -> dict[str, optax.GradientTransformationExtraArgs]:
    shipped = {name: l2o.load(name, num_steps=1000) for name in l2o.shipped()}
    muon = optax.with_extra_args_support(optax.contrib.muon(1e-3))
    adam = optax.with_extra_args_support(optax.adam(1e-3))
    return {"adam": adam, **shipped, "muon": muon}


def seconds_together(shapes, steps) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> seconds of its steps, and of the Adam steps before them."""
    programs = {
        name: Program(tx, shapes, True, None) for name, tx in transformations().items()
    }
    grads = draw(1, shapes)
    for _ in range(steps + TOUCHES):
        for program in programs.values():
            program.step(grads)
    wall = {
        name: np.array([t[0] for t in p.times[TOUCHES:]])
        for name, p in programs.items()
    }
    return {name: (x, wall["adam"]) for name, x in wall.items()}


def seconds_in_pairs(shapes, steps) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """As `seconds_together`, one optimizer at a time."""
    found = {}
    grads = draw(1, shapes)
    for name, tx in transformations().items():
        adam = optax.with_extra_args_support(optax.adam(1e-3))
        pair = [Program(x, shapes, True, None) for x in (tx, adam)]
        for _ in range(steps + 1):
            for program in pair:
                program.step(grads)
        own, base = (np.array([t[0] for t in p.times[1:]]) for p in pair)
        found[name] = (own, base)
        del pair
        jax.clear_caches()
    return found


def speed() -> float:
    """Operations per second of a product of matrices."""
    product = jax.jit(lambda a, b: a @ b)
    m = jnp.ones((2048, 2048))
    times = []
    for _ in range(8):
        start = clocks()[0]
        jax.block_until_ready(product(m, m))
        times.append(clocks()[0] - start)
    return 2 * 2048**3 / float(np.median(times))


def rows_of(size: str) -> list[tuple[str, ...]]:
    shapes, steps = SIZES[size]
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    measure = seconds_in_pairs if size == "1e8" else seconds_together
    rows = []
    for name, (own, base) in measure(shapes, steps).items():
        ratio = [f"{x:.3g}" for x in np.percentile(own / base, (50, 25, 75))]
        update = float(np.median(own))
        training = [6 * count * tokens / speed() for tokens in TOKENS]
        shares = [f"{update / (update + x):.2g}" for x in training]
        rows.append((name, size, *ratio, *shares))
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    options.out.parent.mkdir(exist_ok=True)
    kept = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            old = list(csv.DictReader(file))
        kept = [x for x in old if x["parameters"] not in options.sizes]
    columns = COLUMNS + SHARES
    rows = [tuple(row.get(name, "") for name in columns) for row in kept]
    for size in options.sizes:
        rows += rows_of(size)
        jax.clear_caches()
    rows.sort(key=lambda row: list(SIZES).index(row[1]))
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
