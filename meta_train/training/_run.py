"""The run loop: meta-train, checkpoint, resume, export."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

import l2o
from l2o.names import expanded
from l2o.tasks import TaskFamily, TaskSpec, task_specs

from .._config import Config
from .._mesh import Topology, make_mesh, place
from .._processes import by_main, gathered, initialize, is_main, together
from ..files._writing import writing
from ._alike import check_data, check_folder, check_start
from ._checkpoints import Checkpoints, restore, steps
from ._folder import LOCK, alone, check_name, check_space, claim, record_overrides
from ._loop import Devices, loop
from ._metrics import Metrics
from ._recipe import (
    Part,
    Recipe,
    check_metric,
    check_recipe,
    make_families,
    make_recipe,
    theta_of,
)


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      theta: the last one, or its average; of a population, the best member's.
      optimizer: what was meta-trained.
      frozen: folder of the exported optimizer; None if a signal came.
      completed: False if a signal or `skip_limit` stopped it; the same call resumes.
      step: outer steps made, over all sittings.
    """

    theta: Any
    optimizer: l2o.LearnedOptimizer
    frozen: Path | None
    completed: bool
    step: int


def run(
    config: Config,
    out: str | os.PathLike,
    *,
    optimizer: l2o.LearnedOptimizer | None = None,
    families: Sequence[TaskFamily] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    console: Console | None = None,
    override: bool = False,
    topology: Topology = Topology(),  # noqa: B008  frozen
) -> Result:
    """Meta-trains a learned optimizer and exports it to `out/frozen`.

    If `out` holds an unfinished run of the same configuration it is resumed, bit for
    bit, from the newest checkpoint that can be read; a finished one is not repeated.
    SIGTERM and Ctrl-C save a checkpoint and end the run. So does `config.skip_limit`,
    but then theta is exported too, with a card that says so under "stopped_early".

    Args:
      config: what to do.
      out: folder for `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and
        `frozen/`.
      optimizer: in place of `config.optimizer`: one of your own.
      families: in place of `config.families`: your own task families; augmentation is
        then yours too.
      on_step: called with the record of every outer step, in order.
      console: where progress is shown; standard output by default.
      override: resume under another configuration, where only fields differ that leave
        the state as it is, such as `outer_lr`; recorded in `config.json`.
      topology: devices and processes. All devices are used; particles are shared among
        them. The result does not depend on them but for rounding, and a run may go on
        with others than it began with.

    Raises:
      ValueError: `out` holds a run of another configuration (the message shows the
        fields), or checkpoints that cannot be read; or the processes of a distributed
        run were started with options, versions or data that differ.
      OSError: another run is at work in `out`, or it cannot be written or its disk is
        too full; before any compilation, or when it fills up later: what was written
        before stays, and the same call resumes.
      ProcessLost: another process of a distributed run is gone.

    Example:
      >>> import tempfile
      >>> from l2o.meta_train import Config, run
      >>> config = Config(families=("quadratic10",), outer_steps=2, outer_warmup=0)
      >>> result = run(config, tempfile.mkdtemp())  # doctest: +SKIP
    """
    with contextlib.ExitStack() as held:
        return _run(
            config,
            expanded(out),
            optimizer,
            families,
            on_step,
            console or Console(markup=False),
            override,
            topology,
            held,
        )


def _run(
    config: Config,
    out: Path,
    optimizer: l2o.LearnedOptimizer | None,
    families: Sequence[TaskFamily] | None,
    on_step: Callable[[dict[str, Any]], None] | None,
    console: Console,
    override: bool,
    topology: Topology,
    held: contextlib.ExitStack,
) -> Result:
    # As `run`; on `held` comes what must be given back after it.
    check_name(out)
    check_recipe(config)
    initialize(topology)
    check_start(config, topology, override)
    if not is_main():
        console = Console(quiet=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    devices = Devices(make_mesh(topology, config.particles), topology)
    optimizer, families, specs, start = together(
        lambda: _prepared(config, out, optimizer, families)
    )
    content = _content(config, optimizer, families, specs)
    check_data(content, families, start)
    recipe = make_recipe(config, optimizer, families, start)
    lock = by_main(lambda: held.enter_context(alone(out, say)))
    check_folder(out / LOCK, lock)
    old = by_main(lambda: claim(out, content, override))
    parts, state, numbers = _placed(recipe, devices)

    say(_machine(devices))
    step, state, counters, last = _resumed(config, out, state, old, say)
    overrides = by_main(lambda: record_overrides(out, content, old, step, say))
    by_main(lambda: check_space(out, state, config.keep_checkpoints))
    step, state, stopped_early = loop(
        config,
        step,
        state,
        counters,
        parts,
        numbers,
        devices,
        Checkpoints(
            out / "checkpoints",
            config.keep_checkpoints,
            config.keep_every,
            last=last,
            check=lock.check if lock is not None else lambda: None,
        ),
        Metrics(out, step) if is_main() else None,
        console,
        on_step,
    )
    theta = gathered(theta_of(state[0]))
    completed = step == config.outer_steps
    frozen = None
    if completed or stopped_early:
        card = _card(config, families, specs, step, counters)
        if overrides:
            card["overrides"] = overrides
        if stopped_early:
            card["stopped_early"] = stopped_early
        frozen = _exported(out, optimizer, theta, card, say)
    return Result(theta, optimizer, frozen, completed, step)


def _prepared(
    config: Config,
    out: Path,
    optimizer: l2o.LearnedOptimizer | None,
    families: Sequence[TaskFamily] | None,
) -> tuple[l2o.LearnedOptimizer, Sequence[TaskFamily], dict[str, TaskSpec], Any]:
    """What is trained, on what, by which specs and from which theta."""
    optimizer = optimizer or l2o.make(config.optimizer, **config.optimizer_options)
    specs = {} if families is not None else task_specs(config.families)
    if families is None:
        families = make_families(
            config.families, config.reparam_level, config.reparam_range
        )
    check_metric(config, families)
    start = None
    # Once there is a checkpoint, the weights started from may be gone.
    if config.start_from is not None and not steps(out / "checkpoints"):
        _, start = l2o.load_unbound(config.start_from, optimizer=optimizer)
    return optimizer, families, specs, start


def _placed(recipe: Recipe, devices: Devices) -> tuple[list[Part], Any, Any]:
    """The recipe's parts with their data, first state and numbers, on the devices."""
    # Copied, because the outer step donates it and two leaves may share a buffer.
    outer, workers = jax.tree.map(jnp.array, recipe.state)
    if devices.mesh is None:
        return list(recipe.parts), (outer, workers), recipe.numbers
    parts, placed = [], []
    for part, worker in zip(recipe.parts, workers, strict=True):
        where = devices.shardings(outer, part.specs)
        assert where is not None
        outer_, worker, data, numbers = place(
            (outer, worker, part.data, recipe.numbers), (*where, where[2])
        )
        parts.append(part._replace(data=data))
        placed.append(worker)
    return parts, (outer_, placed), numbers


def _resumed(
    config: Config,
    out: Path,
    state: Any,
    old: dict[str, Any] | None,
    say: Callable[[str], None],
) -> tuple[int, Any, dict[str, float], int | None]:
    """The step to go on from, its state and counters, and the checkpoint they are of.

    Args:
      state: the first one, for a run without a checkpoint.
      old: what `config.json` held before.
    """
    counters = dict.fromkeys(
        ("seconds", "inner_steps", "nonfinite", "skipped", "skipped_in_a_row"), 0.0
    )
    step = 0
    restored = restore(out / "checkpoints", state, aside=out / "unreadable", report=say)
    if restored is not None:
        step, state, counters = restored
        say(f"resuming {out} at outer step {step}")
    elif old is not None:
        say(f"starting {out} again: it holds no checkpoint")
    if step > config.outer_steps:
        raise ValueError(
            f"{out} has made {step} outer steps, more than outer_steps "
            f"({config.outer_steps}); give at least as many, or another folder"
        )
    if counters["skipped_in_a_row"] >= config.skip_limit:
        counters["skipped_in_a_row"] = 0.0  # it has stopped once; another try
    return step, state, counters, None if restored is None else step


def _card(
    config: Config,
    families: Sequence[TaskFamily],
    specs: Mapping[str, TaskSpec],
    step: int,
    counters: Mapping[str, float],
) -> dict[str, Any]:
    """What is told of the training with the weights."""
    return {
        "config": dataclasses.asdict(config),
        "task_families": [family.name for family in families],
        "task_specs": [spec.to_dict() for spec in specs.values()],
        "outer_steps": step,
        "inner_steps": int(counters["inner_steps"]),
        "seconds": round(counters["seconds"], 1),
        "nonfinite_pairs": int(counters["nonfinite"]),
        "skipped_outer_steps": int(counters["skipped"]),
        "device": jax.devices()[0].device_kind,
        "jax_version": jax.__version__,
    }


def _exported(
    out: Path,
    optimizer: l2o.LearnedOptimizer,
    theta: Any,
    card: dict[str, Any],
    say: Callable[[str], None],
) -> Path:
    """The folder that theta is saved to."""
    frozen = out / "frozen"

    def save() -> None:
        with writing(frozen):
            l2o.save(frozen, optimizer, theta, card=card)

    by_main(save)
    if "stopped_early" in card:
        say(
            f"stopped early: {card['stopped_early']}. Theta as it was before them is "
            f"in {frozen}; run again to try on, or start in another folder with a "
            "smaller outer_lr or std"
        )
    return frozen


def _machine(devices: Devices) -> str:
    """On what the run computes, for its first line."""
    count = 1 if devices.mesh is None else devices.mesh.size
    kind = jax.devices()[0].platform.upper()
    text = f"{count} {kind} device{'s' if count > 1 else ''}"
    if jax.default_backend() != "cpu":
        return text
    kernels = l2o.native_kernels()
    if kernels is not None:
        return f"{text}, native kernels ({kernels})"
    return f"{text}, no native kernels: install l2o where there is a C++ compiler"


def _content(
    config: Config,
    optimizer: l2o.LearnedOptimizer,
    families: Sequence[TaskFamily],
    specs: Mapping[str, TaskSpec],
) -> dict[str, Any]:
    """What `config.json` holds."""
    content = {
        **dataclasses.asdict(config),
        "optimizer": optimizer.name,
        "optimizer_options": dict(optimizer.arguments),
        "task_families": [family.name for family in families],
        # A name may come to stand for another task: in a file, or in a later version.
        "task_digests": {name: spec.digest() for name, spec in specs.items()},
    }
    return json.loads(json.dumps(content))  # tuples as lists, as they come back
