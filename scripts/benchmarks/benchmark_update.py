"""Time and memory of one update of ten million parameters, beside `optax.adam`.

    python scripts/benchmarks/benchmark_update.py
    python scripts/benchmarks/benchmark_update.py --optimizers learnable_muon muon
    python scripts/benchmarks/benchmark_update.py --google google --celo celo \
        --google-python google-env/bin/python

Gradients are given; a step is `tx.update` and `optax.apply_updates` in one program,
with parameters and state donated or not. All programs take turns, step by step, in one
process; a rival's published code has a process of its own with an Adam of its own
beside it (scripts/benchmarks/google_rival.py says how to get it).

Printed per program: medians over steps of nanoseconds per parameter, wall and CPU; the
median over steps of the ratio to the Adam step before it, with its quartiles; XLA's
temporaries in bytes per parameter (the native kernels' own memory is of the size of
rows and columns); seconds to trace and compile. `--memory-scheduler` compiles all with
the CPU scheduler that keeps temporaries small.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o.rule import NS_COEFFS, newton_schulz

# 10.4 million parameters: dense, embedding, convolutions, vectors.
MIXED = {
    "dense0": (2048, 2048),
    "dense1": (1024, 2048),
    "dense2": (1000, 512),
    "embedding": (4096, 256),
    "conv0": (3, 3, 256, 512),
    "conv1": (3, 3, 256, 256),
    "conv2": (3, 3, 256, 256),
    "conv3": (1, 1, 512, 256),
    "bias0": (2048,),
    "bias1": (512,),
    "bias2": (1000,),
}
_SCHEDULER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def many(tensors: int) -> dict[str, tuple[int, ...]]:
    """Ten million parameters in so many tensors of eight shapes."""
    n = int(math.sqrt(10e6 / tensors / 0.82))
    shapes = [(n, n), (n, 2 * n), (2 * n, n), (n, n // 2), (n, n), (n,), (2 * n,), (n,)]
    return {f"t{i}": shapes[i % len(shapes)] for i in range(tensors)}


def orthogonalized() -> optax.GradientTransformationExtraArgs:
    """The matrix products of celo2 and nothing else."""

    def update(updates, state, params=None, **extra_args):
        del params, extra_args

        def orthogonal(g):
            return newton_schulz(g, NS_COEFFS, 5, 1e-8) if g.ndim > 1 else g

        return jax.tree.map(orthogonal, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


OPTIMIZERS: dict[str, Callable[[], l2o.LearnedOptimizer]] = {
    "small_fc": l2o.small_fc,
    "celo2_base": l2o.celo2_base,
    "celo": l2o.celo,
    "velo": lambda: l2o.velo(lstm_hidden_size=64, param_inits=32),
    "celo2": l2o.celo2,
    "learnable_muon": l2o.learnable_muon,
    "learnable_muon, 6 bytes": lambda: l2o.learnable_muon(state_bytes=6),
    "learnable_muon, Newton-Schulz": lambda: l2o.learnable_muon(
        orthogonal="newton_schulz"
    ),
}
# Of optax: it orthogonalises what has two axes, and moves the rest as Adam does.
RIVALS = {"muon": lambda: optax.contrib.muon(1e-3)}


def clocks() -> np.ndarray:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), usage.ru_utime + usage.ru_stime])


class Program:
    """An optimizer's step, compiled; `step` makes one and returns its seconds."""

    def __init__(
        self,
        tx: optax.GradientTransformationExtraArgs,
        shapes: dict[str, tuple[int, ...]],
        donate: bool,
        options: dict[str, Any] | None,
    ) -> None:
        def step(params, state, grads, value):
            updates, state = tx.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        self.params = draw(0, shapes)
        self.state = jax.jit(tx.init)(self.params)
        jitted = jax.jit(step, donate_argnums=(0, 1) if donate else ())
        start = time.perf_counter()
        lowered = jitted.lower(self.params, self.state, self.params, jnp.float32(1))
        traced = time.perf_counter()
        self._compiled = lowered.compile(options)
        self.trace, self.compile = traced - start, time.perf_counter() - traced
        memory = self._compiled.memory_analysis()
        count = sum(x.size for x in jax.tree.leaves(self.params))
        self.temporaries = memory.temp_size_in_bytes / count
        self.times: list[np.ndarray] = []

    def step(self, grads: Any) -> None:
        start = clocks()
        new = self._compiled(self.params, self.state, grads, jnp.float32(1))
        jax.block_until_ready(new)
        self.times.append(clocks() - start)
        self.params, self.state = new


def draw(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    key = jax.random.key(seed)
    return {
        name: 0.1 * jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def measure(
    names: list[str],
    shapes: dict[str, tuple[int, ...]],
    steps: int,
    *,
    donate: bool,
    backends: list[l2o.Backend],
    options: dict[str, Any] | None,
) -> None:
    adam = optax.with_extra_args_support(optax.adam(1e-3))
    programs = {"optax.adam": Program(adam, shapes, donate, options)}
    for name in names:
        if name in RIVALS:
            tx = optax.with_extra_args_support(RIVALS[name]())
            programs[name] = Program(tx, shapes, donate, options)
            continue
        optimizer = OPTIMIZERS[name]()
        theta = optimizer.init_theta(jax.random.key(0))
        for backend in backends:
            with l2o.backend(backend):
                tx = optimizer.bind(theta, num_steps=10_000)
                label = f"{name}, {backend}"
                programs[label] = Program(tx, shapes, donate, options)
    if "celo2" in names:
        label = "Newton-Schulz of celo2 alone"
        programs[label] = Program(orthogonalized(), shapes, donate, options)
    grads = draw(1, shapes)
    rivals = [label for label in programs if label != "optax.adam"]
    baselines: dict[str, list[np.ndarray]] = {label: [] for label in rivals}
    for _ in range(steps):
        for label in rivals:
            programs["optax.adam"].step(grads)
            baselines[label].append(programs["optax.adam"].times[-1])
            programs[label].step(grads)
    count = sum(math.prod(shape) for shape in shapes.values())
    print(
        f"\n{count / 1e6:.1f} M parameters in {len(shapes)} tensors, "
        f"{'donated' if donate else 'not donated'}, n = {steps}\n"
    )
    print(
        "| program | ns/param, wall | CPU | wall / Adam (quartiles) | CPU / Adam "
        "| B/param | trace, s | compile, s |\n|---|---|---|---|---|---|---|---|"
    )
    for label, program in programs.items():
        skip = len(program.times) // 10 + 1  # buffers that are touched first
        wall, cpu = np.median(program.times[skip:], 0) / count * 1e9
        ratio = "1 | 1"
        if label in baselines:
            ratios = np.array(program.times[1:]) / np.array(baselines[label][1:])
            low, middle, high = np.percentile(ratios[:, 0], (25, 50, 75))
            ratio = f"{middle:.1f} ({low:.1f} to {high:.1f})"
            ratio += f" | {np.median(ratios[:, 1]):.1f}"
        print(
            f"| {label} | {wall:.2f} | {cpu:.2f} | {ratio} | {program.temporaries:.1f} "
            f"| {program.trace:.1f} | {program.compile:.1f} |",
            flush=True,
        )


def peaks() -> str:
    """What the machine can do: sums larger than its caches, a matrix product."""
    add = jax.jit(lambda x, y: x + y, donate_argnums=0)
    product = jax.jit(lambda a, b: a @ b)
    x, y, m = jnp.ones(2**25), jnp.ones(2**25), jnp.ones((2048, 2048))
    adds, products = [], []
    for _ in range(8):
        start = clocks()[0]
        x = jax.block_until_ready(add(x, y))
        middle = clocks()[0]
        jax.block_until_ready(product(m, m))
        adds.append(middle - start)
        products.append(clocks()[0] - middle)
    bandwidth = 3 * x.nbytes / min(adds) / 1e9
    flops = 2 * 2048**3 / min(products) / 1e9
    return f"peaks: {bandwidth:.0f} GB/s (x += y), {flops:.0f} GFLOP/s (matrix product)"


def rival(name: str, options: argparse.Namespace, steps: int) -> None:
    script = str(Path(__file__).with_name("google_rival.py"))
    command = [options.google_python, script, "--checkout", options.google]
    command += ["--celo", options.celo] if options.celo else []
    command += ["--mode", "update", "--optimizer", name, "--shapes", json.dumps(MIXED)]
    done = subprocess.run(
        command, input=f"1\n{steps}\n", text=True, capture_output=True, check=True
    )
    ready, _, last = map(json.loads, done.stdout.splitlines())
    count = ready["parameters"]
    print(
        f"| published {name} | {last['wall'] / steps / count * 1e9:.1f} | "
        f"{last['cpu'] / steps / count * 1e9:.1f} | "
        f"{last['wall'] / last['adam_wall']:.0f} | "
        f"{last['cpu'] / last['adam_cpu']:.0f} | {ready['temp_bytes'] / count:.0f} | | "
        f"{ready['first_seconds']:.0f} (with imports) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS)[:4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tensors", type=int, help="so many equal ones instead")
    parser.add_argument("--xla", action="store_true", help="the XLA path too")
    parser.add_argument("--undonated", action="store_true")
    parser.add_argument("--memory-scheduler", action="store_true")
    parser.add_argument("--google", help="a checkout of google/learned_optimization")
    parser.add_argument("--celo", help="a checkout of amoudgl/celo")
    parser.add_argument("--google-python", default=sys.executable)
    options = parser.parse_args()
    print(f"{peaks()}; native kernels: {l2o.native_kernels()}")
    measure(
        options.optimizers,
        many(options.tensors) if options.tensors else MIXED,
        options.steps,
        donate=not options.undonated,
        backends=[l2o.chosen_backend(), *(["xla"] if options.xla else [])],
        options=_SCHEDULER if options.memory_scheduler else None,
    )
    if options.google:
        for name in ("small_fc", "small_fc_scalar", "celo2_base", "celo", "velo"):
            rival(name, options, 3)


if __name__ == "__main__":
    main()
