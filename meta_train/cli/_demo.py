"""The main job in one call: meta-train, freeze, reuse in a fresh process, report."""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from .. import presets
from ..training._run import Result, run


def demo(preset: str, out: Path, console: Console) -> Result:
    """Meta-trains a preset; evaluates what was exported, if that was completed."""
    start = time.perf_counter()
    chosen = presets.load(preset)
    console.rule("1  meta-train")
    result = run(chosen.meta_train, out, console=console)
    if not result.completed:
        return result
    console.print(f"frozen optimizer: {result.frozen}", highlight=False, soft_wrap=True)
    console.rule("2  evaluate in a fresh process")
    command = [sys.executable, "-m", "l2o.meta_train", "evaluate"]
    command += ["--optimizers", str(result.frozen), "--preset", preset]
    command += ["--run", str(out), "--out", str(out / "evaluation")]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    console.print(f"the whole job took {seconds:.0f} s", highlight=False)
    return result
