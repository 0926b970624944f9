"""The main job in one call: meta-train, freeze, reuse in a fresh process, report."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

import l2o
from l2o.tasks import text_fingerprint

from . import presets
from ._config import Evaluation

# from ._evaluate import evaluate, save_results
from ._metrics import read_metrics
from ._report import terminal_table, write_report
from ._run import Result, run


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
    command = [sys.executable, "-m", "l2o.meta_train", "evaluate", str(result.frozen)]
    command += ["--preset", preset, "--run", str(out), "--out", str(out / "evaluation")]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    console.print(f"the whole job took {seconds:.0f} s", highlight=False)
    return result


def evaluate_frozen(
    source: str | os.PathLike,
    config: Evaluation,
    out: Path,
    *,
    run_folder: Path | None,
    console: Console,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Loads a frozen optimizer, evaluates it, prints the table, writes the report.

    `options` are arguments of its factory, over those that `source` has.

    Returns:
      The report's path.
    """
    optimizer, theta = l2o.load_theta(source, **(options or {}))
    card = _card(source, optimizer)
    tx = optimizer.bind(theta, num_steps=config.steps)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"training {len(config.tasks)} tasks")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        results = evaluate(tx, config, on_progress=show)
    seconds = time.perf_counter() - start

    notes = [f"Evaluation took {seconds:.0f} s on {os.cpu_count()} cores."]
    if "transformer_lm" in config.tasks:
        notes.append(
            "transformer_lm: the documentation text of Python "
            f"{sys.version_info.major}.{sys.version_info.minor}, SHA-256 "
            f"{text_fingerprint()}...; it differs between Python versions."
        )
    meta: dict[str, Any] = {"source": str(source), "card": card, "notes": notes}
    save_results(out / "results.json", results, config, meta)
    write_report(
        out / "report.html",
        results,
        card=card,
        evaluation=config,
        records=read_metrics(run_folder) if run_folder else (),
        notes=notes,
    )
    console.print(terminal_table(results))
    grid = ", ".join(f"{rate:g}" for rate in config.learning_rates)
    console.print(
        f"{config.steps} steps, n = {config.seeds} seeds; Adam's grid: {grid} (* = at "
        "its edge)\nspeed-up = Adam's steps / the learned optimizer's steps to Adam's "
        "final loss; reached: by how many seeds;\nAdam needs: the share of the steps "
        "to the learned optimizer's final loss, where Adam's was not reached",
        highlight=False,
        soft_wrap=True,
    )
    path = (out / "report.html").resolve()
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return path


def _card(source: str | os.PathLike, optimizer: l2o.LearnedOptimizer) -> dict[str, Any]:
    """Its card, or what can be said of weights that others wrote."""
    try:
        return l2o.read_card(source)
    except (FileNotFoundError, NotADirectoryError):
        theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
        return {
            "optimizer": {
                "name": optimizer.name,
                "arguments": dict(optimizer.arguments),
            },
            "meta_parameters": sum(x.size for x in jax.tree.leaves(theta)),
        }
