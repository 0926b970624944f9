"""Kills a meta-training run again and again, and compares it with an undisturbed one.

    python scripts/checks/kill_and_resume.py --kills 20

The run is a child process that gets SIGKILL while it starts and compiles, between outer
steps and while a checkpoint is being written, and is started again each time. In the
end theta, the outer optimizer, every inner run, PRNG keys and counters of the last
checkpoint, the frozen optimizer and the metrics must be those of a run that nothing
disturbed, bit for bit, but for timings. No kill may cost more than the outer steps
since the last complete checkpoint. Exit status 1 if anything differs.

Takes about seven minutes on 2 CPU cores that others use too.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

EVERY = 100  # outer steps between checkpoints; they take longer than a save
LIMIT = 300  # seconds until a child is taken for hung

_RESUMING = re.compile(r"resuming .* at outer step (\d+)")


class Kill(NamedTuple):
    """One kill, as seen from outside."""

    moment: str
    seconds: float  # the child's age
    made: int  # outer steps in metrics.jsonl, over all sittings
    checkpoint: int  # newest complete one; what came after it is lost
    saving: bool  # whether another one was being written


def start(out: Path, steps: int) -> subprocess.Popen[str]:
    """The run in a child process; restarts share compiled programs."""
    command = [
        *(sys.executable, "-m", "l2o.meta_train", "meta-train", "--preset", "smoke"),
        *("--families", "mlp16", "quadratic10", "--checkpoint-every", str(EVERY)),
        *("--outer-steps", str(steps), "--out", str(out)),
    ]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def outer_steps(out: Path) -> int:
    """Outer steps on record."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def newest_checkpoint(out: Path) -> int:
    """Newest complete checkpoint; 0 without one."""
    folder = out / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def is_saving(out: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((out / "checkpoints").glob("*.partial"))


def kill_once(out: Path, steps: int, rng: random.Random, left: int) -> tuple[Kill, str]:
    """Starts or resumes the run and kills it; returns the kill and what it printed."""
    made, checkpoint = outer_steps(out), newest_checkpoint(out)
    moment = rng.choice(["start", "step", "step", "save", "save"])
    begin = time.perf_counter()
    child = start(out, steps)

    # No kill may take more than its share of the steps that are left.
    target = checkpoint + rng.randint(1, max((steps - checkpoint) // (left + 2), 1))
    delay = rng.uniform(0, 6 if moment == "start" else 0.5)
    fresh = False  # what the last kill left behind is gone
    since: float | None = None  # when a save was first seen

    def due() -> bool:
        nonlocal fresh, since
        now = time.perf_counter()
        if moment == "save":
            fresh = fresh or not is_saving(out)
            if since is None and fresh and is_saving(out):
                since = now
            return since is not None and now - since >= delay
        done = outer_steps(out)
        fresh = fresh or done != made
        if moment == "start":
            return now - begin >= delay or (fresh and done > checkpoint)
        return fresh and done >= target

    while not due() and child.poll() is None:
        if time.perf_counter() - begin > LIMIT:
            child.kill()
            sys.exit(f"the run hangs:\n{child.communicate()[0]}")
        time.sleep(0.001)
    child.kill()
    output, _ = child.communicate()
    seconds = time.perf_counter() - begin
    if child.returncode == 0:
        sys.exit("the run was done before the last kill: raise --outer-steps")
    if child.returncode > 0:
        sys.exit(f"the run failed by itself:\n{output}")
    after = outer_steps(out), newest_checkpoint(out), is_saving(out)
    return Kill(moment, seconds, *after), output


def resumed_at(output: str) -> int | None:
    """The outer step at which a child resumed, by what it said."""
    found = _RESUMING.search(" ".join(output.split()))
    return int(found[1]) if found else None


def finish(out: Path, steps: int) -> str:
    """Lets the run end; returns what it printed."""
    child = start(out, steps)
    output, _ = child.communicate(timeout=LIMIT)
    if child.returncode:
        sys.exit(f"the run failed:\n{output}")
    return output


def outcome(out: Path, step: int) -> dict[str, Any]:
    """All that a run leaves behind, by name, but for timings."""
    folder = out / "checkpoints" / str(step)
    record = json.loads((folder / "record" / "metadata").read_text())
    arguments = dict.fromkeys(record["leaves"], ocp.RestoreArgs(np.ndarray))
    leaves = ocp.PyTreeCheckpointHandler().restore(
        folder / "state", args=ocp.args.PyTreeRestore(restore_args=arguments)
    )
    result: dict[str, Any] = {}
    for name, x in leaves.items():
        result[f"state {name}"] = (x.dtype, x.shape, x.tobytes())
        result[f"checksum {name}"] = record["leaves"][name]
    counters = {k: v for k, v in record["counters"].items() if k != "seconds"}
    result |= {f"counter {name}": value for name, value in counters.items()}
    result["frozen weights"] = (out / "frozen" / "model.safetensors").read_bytes()
    card = json.loads((out / "frozen" / "config.json").read_text())
    del card["card"]["seconds"]
    result["frozen card"] = card
    result["config.json"] = (out / "config.json").read_text()
    for line in (out / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        del values["seconds"]
        result[f"metrics of outer step {values['step']}"] = values
    return result


def differences(whole: Path, cut: Path, step: int) -> list[str]:
    """What differs between two runs that ended at an outer step, and what is left."""
    expected, found = outcome(whole, step), outcome(cut, step)
    leftovers = [
        *cut.glob("unreadable"),
        *cut.glob("run.lock"),
        *cut.glob("checkpoints/*.partial"),
    ]
    return [
        *(f"left behind: {path}" for path in leftovers),
        *(
            f"differs: {name}"
            for name in sorted({*expected, *found})
            if expected.get(name) != found.get(name)
        ),
    ]


def main() -> int:
    """Runs the whole check; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--outer-steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--out", type=Path, help="a new folder; a temporary one by default"
    )
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    folder.mkdir(parents=True, exist_ok=True)
    whole, cut = folder / "whole", folder / "cut"
    if whole.exists() or cut.exists():
        parser.error(f"{folder} holds an earlier check: give another --out")
    steps, rng = options.outer_steps, random.Random(options.seed)

    begin = time.perf_counter()
    finish(whole, steps)
    print(
        f"undisturbed run of {steps} outer steps: {time.perf_counter() - begin:.0f} s"
    )
    print(f"{'kill':>4}  {'during':6} {'after s':>7} {'steps':>6} {'checkpoint':>10}"
          f" {'resumed at':>10} {'lost':>4}")  # fmt: skip
    wrong: list[str] = []
    last = Kill("", 0.0, 0, 0, False)
    moments: Counter[str] = Counter()

    def check_resumed(output: str, made: int) -> int | None:
        began = resumed_at(output)
        expected = last.checkpoint or None  # without one it starts again
        # One that was killed before it could say so has made no step.
        if began != expected and not (began is None and made == last.made):
            wrong.append(f"resumed at {began}, not at checkpoint {expected}")
        return began

    for number in range(1, options.kills + 1):
        kill, output = kill_once(cut, steps, rng, options.kills - number)
        began = check_resumed(output, kill.made)
        # One that came to no step lost nothing; what is on record is the last kill's.
        lost = kill.made - kill.checkpoint if kill.made != last.made else 0
        # A save lets the run go on meanwhile, at most until the next one is due.
        if lost > EVERY * (2 if kill.saving else 1):
            wrong.append(f"kill {number} lost {lost} outer steps")
        during = "saving" if kill.saving and kill.moment != "start" else kill.moment
        moments[during] += 1
        print(
            f"{number:4}  {during:6} {kill.seconds:7.1f} {kill.made:6} "
            f"{kill.checkpoint:10} {began or '-':>10} {lost:4}",
            flush=True,
        )
        last = kill
    output = finish(cut, steps)
    print(f"then undisturbed from outer step {check_resumed(output, steps) or 0}")

    wrong += differences(whole, cut, steps)
    for line in wrong[:20]:
        print(line)
    compared = len(outcome(whole, steps))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(moments.items()))
    print(
        f"{'NOT THE SAME' if wrong else 'the same bit for bit'} after {options.kills} "
        f"kills ({counts}): {compared} things compared, "
        f"{compared - steps} beside the metrics of {steps} outer steps"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
