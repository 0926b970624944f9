"""What an update of every shipped optimizer costs beside `optax.adam`, at three sizes.

    python scripts/benchmarks/shipped_updates.py --out docs/data/update_costs.csv

Gradients are given, parameters and state donated. At each size all programs take turns,
step by step, in one process. Per optimizer: the median over steps of the ratio to the
Adam step before it, and its quartiles.
"""

import argparse
import csv
from pathlib import Path

import jax
import numpy as np
import optax
from benchmark_update import MIXED, Program, draw

import l2o

SIZES = {
    "1e4": ({"w0": (64, 64), "w1": (64, 64), "w2": (64, 32), "b": (64,)}, 300),
    "1e6": ({**{f"w{i}": (512, 512) for i in range(4)}, "b": (512,)}, 60),
    "1e7": (MIXED, 12),
}


def transformations() -> dict[str, optax.GradientTransformationExtraArgs]:
    shipped = {name: l2o.load(name, num_steps=1000) for name in l2o.shipped()}
    muon = optax.with_extra_args_support(optax.contrib.muon(1e-3))
    adam = optax.with_extra_args_support(optax.adam(1e-3))
    return {"adam": adam, **shipped, "muon": muon}


def ratios(
    shapes: dict[str, tuple[int, ...]], steps: int
) -> dict[str, tuple[float, float, float]]:
    """name -> median, lower and upper quartile of the time over Adam's."""
    programs = {
        name: Program(tx, shapes, True, None) for name, tx in transformations().items()
    }
    grads = draw(1, shapes)
    for step in range(steps + 2):
        if step == 2:  # the first steps touch new memory
            for program in programs.values():
                program.times.clear()
        for program in programs.values():
            program.step(grads)
    wall = {k: np.array([t[0] for t in p.times]) for k, p in programs.items()}
    return {
        name: tuple(np.percentile(x / wall["adam"], (50, 25, 75)))
        for name, x in wall.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.parent.mkdir(exist_ok=True)
    rows = []
    for size, (shapes, steps) in SIZES.items():
        for name, (median, low, high) in ratios(shapes, steps).items():
            rows.append((name, size, f"{median:.3g}", f"{low:.3g}", f"{high:.3g}"))
            print(*rows[-1], flush=True)
        jax.clear_caches()
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("optimizer", "parameters", "times_adam", "low", "high"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
