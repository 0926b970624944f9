"""Inner steps per second of meta-training, beside google/learned_optimization's.

    python scripts/benchmarks/benchmark_meta_training.py
    python scripts/benchmarks/benchmark_meta_training.py --google google --celo celo \
        --google-python google-env/bin/python

Ours is `l2o.meta_train.run`, the loop of `l2o meta-train` with all that it writes but
checkpoints, on as many CPU devices as the command takes. The rival
(`google_rival.py` says how to get it) makes gradient estimates only. Both train
MLPs 64-32-10 on batches of 128 images in windows of 50 steps, in processes of their own
that take turns.

Printed per program: median over rounds of inner steps per second and per CPU-second,
with the smallest and largest; the median over rounds of the ratio of CPU-seconds within
a round; seconds from the start of the process to the end of the first estimate with an
empty compilation cache, and again with a full one; and the largest memory in use.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SETTLE = 6  # records after a pause that may have been computed in it
_ESTIMATORS = {"pes": "pes", "es": "truncated_es", "backprop": "truncated_backprop"}


def child(options: argparse.Namespace) -> None:
    """Speaks the protocol of google_rival.py, at one outer step per call."""
    import jax

    import l2o
    from l2o.meta_train import Config, Topology, run
    from l2o.meta_train.cli import configure_process, share_cores
    from l2o.tasks import make_family

    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    configure_process()
    share_cores(options.particles, Topology())
    family = make_family(
        "supervised",
        model="mlp",
        datasets=("digits",),
        options={"hidden": (32,)},
        batch_size=128,
    )
    backprop = options.estimator == "backprop"
    config = Config(
        optimizer=options.optimizer,
        estimator=_ESTIMATORS[options.estimator],
        estimator_options={"levels": 0} if backprop else {},
        particles=options.particles,
        truncation=50,
        episode_length=(500, 500),
        outer_steps=10**6,
        outer_warmup=0,
        checkpoint_every=10**6,
    )
    answer = sys.stdout
    state: dict[str, Any] = {"skip": 1, "left": 0}

    def clocks() -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime

    def on_step(record: dict[str, Any]) -> None:
        if state["skip"]:
            state["skip"] -= 1
            if state["skip"]:
                return
            if "begun" not in state:
                say(ready=True, first_seconds=_age())
            else:
                state.update(start=clocks(), steps=0, left=state["calls"])
                return
        else:
            state["steps"] += record["inner_steps"]
            state["left"] -= 1
            if state["left"]:
                return
            wall, cpu = (b - a for a, b in zip(state["start"], clocks(), strict=True))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            say(wall=wall, cpu=cpu, inner_steps=state["steps"], maxrss=peak)
        state["begun"] = True
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        state.update(skip=_SETTLE, calls=int(line))

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answer, flush=True)

    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        run(
            config,
            out,
            optimizer=l2o.make(options.optimizer),
            families=[family],
            on_step=on_step,
        )


def _age() -> float:
    """Seconds since this process was started, as Linux tells it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Program:
    """A child process; `measure` makes it work and waits for its answer."""

    def __init__(self, name: str, command: list[str], cache: str) -> None:
        self.name = name
        self.rounds: list[dict[str, float]] = []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "L2O_CACHE": cache},
        )
        self.first = self._read()["first_seconds"]

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died; run its command to see why")
        return json.loads(line)

    def measure(self, calls: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        self.rounds.append(self._read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", default=["small_fc", "celo2_base"])
    parser.add_argument("--estimators", nargs="+", default=["pes"])
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round")
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--google", help="a checkout of google/learned_optimization")
    parser.add_argument("--celo", help="a checkout of amoudgl/celo")
    parser.add_argument("--google-python", default=sys.executable)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--optimizer", help=argparse.SUPPRESS)
    parser.add_argument("--estimator", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return

    print("| program | inner steps / s | per CPU-second | ratio | first, s | MB |")
    print("|---|---|---|---|---|---|")
    for estimator in options.estimators:
        for optimizer in options.optimizers:
            compare(estimator, optimizer, options)


def compare(estimator: str, optimizer: str, options: argparse.Namespace) -> None:
    what = ["--optimizer", optimizer, "--estimator", estimator]
    what += ["--particles", str(options.particles)]
    ours = [sys.executable, __file__, "--child", *what]
    ours += ["--devices", str(options.devices)]
    with tempfile.TemporaryDirectory() as cache:
        cold = Program("l2o", ours, cache)
        cold.close()
        programs = [Program("l2o", ours, cache)]
        if options.google:
            rival = str(Path(__file__).with_name("google_rival.py"))
            command = [options.google_python, rival, "--checkout", options.google]
            command += ["--mode", "meta", *what]
            command += ["--celo", options.celo] if options.celo else []
            programs.append(Program("google", command, cache))
        calls = {}
        for program in programs:
            program.measure(3)
            last = program.rounds.pop()
            steps_per_call = last["inner_steps"] / 3
            calls[program.name] = max(
                2,
                round(
                    options.seconds
                    * last["inner_steps"]
                    / last["wall"]
                    / steps_per_call
                ),
            )
        for _ in range(options.rounds):
            for program in programs:
                program.measure(calls[program.name])
        for program in programs:
            program.close()

    per_cpu = {
        program.name: [r["inner_steps"] / r["cpu"] for r in program.rounds]
        for program in programs
    }
    for program in programs:
        own = per_cpu[program.name]
        wall = [r["inner_steps"] / r["wall"] for r in program.rounds]
        ratios = [a / b for a, b in zip(own, per_cpu[programs[-1].name], strict=True)]
        ratio = f"{statistics.median(ratios):.1f}x" if len(programs) > 1 else "-"
        first = f"{program.first:.1f}"
        if program.name == "l2o":
            first = f"{cold.first:.1f}, then {first}"
        peak = max(r["maxrss"] for r in program.rounds) / 1e6
        label = f"{program.name} {optimizer}, {estimator}"
        print(
            f"| {label} | {spread(wall)} | {spread(own)} "
            f"| {ratio} | {first} | {peak:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
