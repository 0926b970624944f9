"""What an optimizer learns under a fixed budget, on tasks it has not seen."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import l2o
from l2o.tasks import task_specs

from .._config import Config, Evaluation
from ..evaluation._board import REFERENCE as ADAM
from ..evaluation._entrants import Entrant, of_optimizer
from ..evaluation._evaluate import evaluate, suite_of
from ..evaluation._scores import diverged
from ..evaluation._store import VERSION, Store, key_of
from ..training._run import run
from ._grid import REFERENCE, Variant, identity_of


def training_setting(variant: Variant, config: Config) -> dict[str, Any]:
    """All that the weights of a variant depend on."""
    specs = task_specs(config.families)
    return {
        "optimizer": identity_of(variant.optimizer),
        "config": {**budget(config), "seed": config.seed},
        "families": {name: spec.digest() for name, spec in specs.items()},
    }


def budget(config: Config) -> dict[str, Any]:
    """What all variants and seeds have in common."""
    own = ("optimizer", "optimizer_options", "seed")
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in own}


def evaluation_setting(config: Evaluation) -> dict[str, Any]:
    """All that scores depend on beside the weights."""
    tasks = suite_of(config.suite).tasks
    return {
        **dataclasses.asdict(config),
        "version": VERSION,
        "digests": {name: spec.digest() for name, spec in tasks.items()},
    }


def perform(
    variant: Variant, training: Config, evaluation: Evaluation, out: Path
) -> dict[str, Any]:
    """Meta-trains a variant, or goes on with it, and evaluates it beside tuned Adam.

    Args:
      variant: what is meta-trained; nothing of it is tuned afterwards.
      training, evaluation: the budgets.
      out: folder for `training/` and the evaluation's `results/`.

    Returns:
      `scores`: task -> shares of tuned Adam's improvement, one per evaluation seed;
      `diverged`: runs; and of meta-training `seconds`, `inner_steps` and why it
      `stopped_early`, if so. The reference is tuned Adam itself, without training.

    Raises:
      KeyboardInterrupt: a signal ended meta-training; its checkpoint is kept.
    """
    entrants: list[Entrant] = []
    trained: Mapping[str, Any] = {}
    if variant.name != REFERENCE:
        result, trained = _train(variant, training, out)
        entrants = [of_optimizer(variant.name, result.optimizer, result.theta)]
    store = Store(out / "results")
    board = evaluate(evaluation, entrants=entrants, store=store)
    name = entrants[0].name if entrants else ADAM
    scores = {task: board.improvement(name, task).tolist() for task in board.tasks}
    lost = [
        int(np.sum(diverged(board.chosen(name, task).curves["train"]["loss"])))
        for task in board.tasks
    ]
    return {"scores": scores, "diverged": sum(lost), **trained}


def _train(variant: Variant, config: Config, out: Path) -> tuple[Any, Mapping]:
    folder = out / "training" / key_of(training_setting(variant, config))
    quiet = Console(quiet=True)
    result = run(config, folder, optimizer=variant.optimizer, console=quiet)
    if result.frozen is None:
        raise KeyboardInterrupt
    card = l2o.read_card(result.frozen)["card"]
    return result, {
        "seconds": card["seconds"],
        "inner_steps": card["inner_steps"],
        "stopped_early": card.get("stopped_early"),
    }
