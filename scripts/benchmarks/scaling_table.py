"""What an outer step computes, communicates and holds per device, on 1 to 8 devices.

Virtual devices share one CPU, so nothing here is a time: the numbers are read off the
compiled programs. XLA counts the body of a loop once: FLOPs are those of one inner step
of all runs of a device, arguments include the dataset.

    python scripts/benchmarks/scaling_table.py --optimizer small_fc --particles 64
"""

import argparse
import os
import re

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import l2o
from l2o import meta_train as mt
from l2o.tasks import make_family

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def communicated(text: str) -> tuple[int, int, set[str]]:
    """(operations, bytes of their results, kinds) outside loops."""
    count, size, kinds = 0, 0, set()
    for line in text.splitlines():
        match = re.search(
            r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|"
            r"reduce-scatter)(?:-start)?\(",
            line,
        )
        if match:
            count += 1
            kinds.add(match[2])
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                elements = np.prod([int(n) for n in shape.split(",") if n])
                size += int(elements) * _BYTES[dtype]
    return count, size, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="small_fc")
    parser.add_argument("--family", default="mlp32")
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--truncation", type=int, default=50)
    options = parser.parse_args()

    problem = mt.learn_optimizer(
        l2o.make(options.optimizer), make_family(options.family)
    )
    estimator = mt.pes(
        problem,
        mt.log_uniform(100, 500),
        particles=options.particles,
        truncation=options.truncation,
        max_offset=500,
    )
    tx = mt.outer_optimizer(1e-3, warmup=10, steps=100, clip=1.0)
    theta = problem.init_theta(jax.random.key(0))
    outer = mt.Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(1))
    worker = estimator.init(jax.random.key(2), theta)
    step = mt.make_outer_step(estimator, tx)
    size = sum(x.size for x in jax.tree.leaves(theta))

    table = Table(
        *("devices", "pairs per device", "FLOPs per device", "arguments, MiB"),
        *("temporaries, MiB", "collectives", "bytes in them"),
        title=f"{options.optimizer} ({size} meta-parameters) on {options.family}, "
        f"{options.particles} pairs, {options.truncation} inner steps",
    )
    topology = mt.Topology()
    for count in (1, 2, 4, 8):
        mesh = mt.make_mesh(topology, options.particles, devices=jax.devices()[:count])
        if mesh is None:
            compiled = jax.jit(step).lower(outer, worker, problem.data).compile()
        else:
            where = mt.run_shardings(mesh, outer, estimator.specs, topology)
            with jax.set_mesh(mesh):
                placed = mt.place((outer, worker, problem.data), where)
                jitted = jax.jit(
                    step, in_shardings=where, out_shardings=(*where[:2], where[2])
                )
                compiled = jitted.lower(*placed).compile()
        memory = compiled.memory_analysis()
        operations, size_bytes, kinds = communicated(compiled.as_text())
        table.add_row(
            f"{count}",
            f"{options.particles // count}",
            f"{compiled.cost_analysis()['flops']:.3g}",
            f"{memory.argument_size_in_bytes / 2**20:.2f}",
            f"{memory.temp_size_in_bytes / 2**20:.2f}",
            f"{operations} {', '.join(sorted(kinds))}",
            f"{size_bytes}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
