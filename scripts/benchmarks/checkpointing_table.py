"""Memory and time of backpropagation through T inner steps, by levels of checkpointing.

Memory is what XLA says of the compiled program (temporaries), time the median of
interleaved runs, relative to level 0.

    python scripts/benchmarks/checkpointing_table.py
"""

import argparse
import statistics
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import l2o
from l2o import meta_train as mt
from l2o.tasks import make_family

_LEVELS = (0, 1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="small_fc")
    parser.add_argument("--family", default="mlp16")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    problem = mt.learn_optimizer(
        l2o.make(options.optimizer), make_family(options.family)
    )
    theta = problem.init_theta(jax.random.key(0))
    arguments = (jax.random.key(1), theta, (), problem.data, 0)
    table = Table(
        *("T", "levels", "temporaries, MiB", "KiB per step", "time / level 0"),
        title=f"backprop of {options.optimizer} on {options.family}, one task, "
        f"n = {options.repeats} timings",
    )
    for length in options.lengths:
        compiled = {}
        for levels in _LEVELS:
            estimator = mt.backprop(
                problem, mt.constant(length), particles=1, levels=levels
            )
            compiled[levels] = jax.jit(estimator.estimate).lower(*arguments).compile()
        seconds: dict[int, list[float]] = {levels: [] for levels in _LEVELS}
        for repeat in range(options.repeats + 1):
            for levels, program in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                if repeat:  # the first is a warm-up
                    seconds[levels].append(time.perf_counter() - start)
        for levels, program in compiled.items():
            size = program.memory_analysis().temp_size_in_bytes
            ratios = np.array(seconds[levels]) / np.array(seconds[0])
            spread = f"{statistics.median(ratios):.2f}"
            spread += f" ({ratios.min():.2f}-{ratios.max():.2f})"
            table.add_row(
                f"{length}",
                f"{levels}",
                f"{size / 2**20:.2f}",
                f"{size / 2**10 / length:.1f}",
                spread,
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
