"""The main job in one call: meta-train, freeze, reuse in a fresh process, report."""

import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

import l2o

from .. import presets
from .._config import Config
from ..evaluation import WINDOW, Board, load_board
from ..training._run import Result, run

_REFERENCE = "adam"


def demo(preset: str, out: Path, console: Console) -> Result:
    """Meta-trains a preset; evaluates what was exported, if that was completed.

    Where meta-training starts from a rule, the start is evaluated beside the result.
    """
    start = time.perf_counter()
    chosen = presets.load(preset)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    console.rule("1  meta-train")
    result = run(chosen.meta_train, out, console=console)
    if not result.completed or result.frozen is None:
        return result
    say(f"frozen optimizer: {result.frozen}")
    console.rule("2  evaluate in a fresh process")
    entrants = [_entrant(result.frozen, chosen.meta_train)]
    started = _save_start(chosen.meta_train, out / "start")
    if started is not None:
        entrants.append(_entrant(started, chosen.meta_train))
    evaluation = out / "evaluation"
    command = [sys.executable, "-m", "l2o.meta_train", "evaluate"]
    command += ["--optimizers", *entrants, "--preset", preset]
    command += ["--run", str(out), "--out", str(evaluation)]
    subprocess.run(command, check=True)
    console.rule("3  what came of it")
    for line in summary(load_board([evaluation])):
        say(line)
    say(f"the whole job took {time.perf_counter() - start:.0f} s")
    say(f"look at it:  open {evaluation / 'report.html'}")
    say(f"use it:      l2o.load({str(result.frozen)!r}, num_steps=...)")
    say(f"go on:       l2o diagnose {result.frozen}")
    return result


def _entrant(folder: Path, config: Config) -> str:
    """As `l2o evaluate` takes it, with nothing tuned."""
    rate = config.optimizer_options.get("learning_rate")
    return f"{folder}" if rate is None else f"{folder}:{rate}"


def _save_start(config: Config, folder: Path) -> Path | None:
    """What meta-training starts from, if that is a rule and not random weights."""
    optimizer = l2o.make(config.optimizer, **config.optimizer_options)
    if optimizer.arguments.get("init", "random") == "random" or config.start_from:
        return None
    theta = optimizer.init_theta(jax.random.key(config.seed))
    return l2o.save(folder, optimizer, theta)


def summary(board: Board) -> list[str]:
    """On how many tasks each contestant ends lower than tuned Adam, and the start."""

    def ends(name: str, task: str) -> np.ndarray:
        curve = board.chosen(name, task).curves["train"]["loss"]
        last = np.mean(curve[:, -WINDOW:], 1)
        return np.where(np.isfinite(last), last, np.inf)

    def ahead(name: str, rival: str) -> int:
        """Tasks on which most runs end lower."""
        wins = [np.mean(ends(name, t) < ends(rival, t)) > 0.5 for t in board.tasks]
        return int(np.sum(wins))

    names = [name for name in board.contestants if name != _REFERENCE]
    lines = [
        f"{name}: a lower training loss than tuned Adam on "
        f"{ahead(name, _REFERENCE)} of {len(board.tasks)} tasks"
        for name in names
    ]
    if len(names) == 2:
        lines.append(
            f"meta-training lowered the training loss of its start on "
            f"{ahead(*names)} of {len(board.tasks)} tasks"
        )
    return lines
