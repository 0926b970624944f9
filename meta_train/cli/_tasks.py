"""What a person sees of the tasks: tables of the suites, learning curves of one."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

from l2o.tasks import (
    Cost,
    TaskSpec,
    parameter_count,
    remembered_cost,
    spec_cost,
    suites,
    task_specs,
)
from l2o.tasks.data import is_available

from .._palette import BLUE, GREEN, ORANGE
from .._progress import Progress
from ..evaluation._curves import learning_curve

_RATES = (1e-3, 1e-2, 1e-1)
_SEEDS, _POINTS, _BATCHES = 3, 50, 4
_COLOURS = (BLUE, ORANGE, GREEN)


def list_tasks(
    names: Sequence[str] = (), *, console: Console, measure: bool = False
) -> None:
    """Prints one table per suite, or one of the tasks that are named.

    What an inner step costs stands there once `spec_cost` has found it on this kind of
    machine; with `measure` it is found now, for all whose data are there.

    Raises:
      ValueError: an unknown name.
    """
    groups: list[tuple[str, dict[str, TaskSpec]]] = []
    if names:
        groups.append(("", task_specs(names)))
    else:
        for suite in suites().values():
            title = (
                f"{suite.name}, version {suite.version}: {suite.about}; "
                f"{suite.steps} steps, {suite.metric} on {suite.split}"
            )
            groups.append((title, dict(suite.tasks)))
    total = sum(len(specs) for _, specs in groups)
    with Progress("task", console, total) if measure else nullcontext() as progress:
        found = [_rows(specs, measure, progress) for _, specs in groups]
    for (title, _), rows in zip(groups, found, strict=True):
        costs = [
            Column(header, justify="right", no_wrap=True, min_width=width)
            for header, width in (("parameters", 10), ("Mflop", 5), ("ms/step", 7))
        ]
        if not any(any(row[3:]) for row in rows):
            costs = []  # long names of tasks whose data are absent need the room
        table = Table(
            Column("task", no_wrap=True),
            Column("kind", overflow="fold", min_width=9),
            Column("data", overflow="fold", min_width=13),
            *costs,
            title=title,
            title_justify="left",
            box=None,
            padding=(0, 1, 0, 0),
        )
        for row in rows:
            table.add_row(*row[: len(table.columns)])
        console.print(table)


def _rows(
    specs: Mapping[str, TaskSpec], measure: bool, progress: Progress | None
) -> list[tuple[str, ...]]:
    rows = []
    for name, spec in specs.items():
        rows.append((name, *_row(spec, measure)))
        if progress is not None:
            progress.advance()
    return rows


def _row(spec: TaskSpec, measure: bool) -> tuple[str, ...]:
    try:
        return _found(spec, measure)
    except ModuleNotFoundError as error:
        return str(spec.options.get("model", spec.kind)), str(error), "", "", ""


def _found(spec: TaskSpec, measure: bool) -> tuple[str, ...]:
    absent = [name for name in spec.datasets if not is_available(name)]
    cost: Cost | None = None
    if measure and not absent:
        cost = spec_cost(spec, measure=True)
    elif not absent:
        cost = remembered_cost(spec)
    data = ", ".join(dict.fromkeys(spec.datasets)) or "-"
    if absent:
        data += " (absent)"
    kind = str(spec.options.get("model", spec.kind))
    if absent:
        return kind, data, "", "", ""
    if cost is None:
        return kind, data, f"{parameter_count(spec.family()):,}", "", ""
    seconds = "" if cost.seconds is None else f"{1e3 * cost.seconds:.2g}"
    return kind, data, f"{cost.parameters:,}", f"{cost.flops / 1e6:.3g}", seconds


def show_task(name: str, out: Path, steps: int, *, console: Console) -> Path:
    """Draws learning curves of a task under Adam; prints what it is.

    Args:
      name: of a task, or a JSON file with one.
      out: folder for the picture, `NAME.svg`.
      steps: inner steps, rounded up to a multiple of 50.

    Raises:
      ValueError: an unknown name, or one of several tasks.
    """
    specs = task_specs(name)
    if len(specs) != 1:
        raise ValueError(f"{name!r} stands for {len(specs)} tasks; --show draws one")
    if steps < 1:
        raise ValueError(f"steps must be positive, not {steps}")
    ((label, spec),) = specs.items()
    family = spec.family()
    every = -(-steps // _POINTS)

    @jax.jit
    def curve(data, rate, seed):
        return learning_curve(
            optax.with_extra_args_support(optax.adam(rate)),
            family,
            data,
            jax.random.key(seed),
            steps=every * _POINTS,
            eval_every=every,
            eval_batches=_BATCHES,
            splits=("train", "test"),
        )

    curves = []
    with Progress("learning curve", console, len(_RATES) * _SEEDS) as progress:
        for rate, seed in itertools.product(_RATES, range(_SEEDS)):
            curves.append(jax.device_get(curve(family.data, rate, seed)))
            progress.advance()
    found = {
        split: np.reshape([x[split]["loss"] for x in curves], (len(_RATES), _SEEDS, -1))
        for split in ("train", "test")
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{label}.svg"
    with matplotlib.rc_context({"svg.hashsalt": "l2o"}):
        _figure(label, every, found).savefig(path)
    console.print(spec.to_json(), highlight=False, soft_wrap=True)
    table = Table("Adam's rate", *(f"{s} loss" for s in found), box=None)
    for i, rate in enumerate(_RATES):
        ends = (f"{np.mean(x[i, :, 0]):.3g} -> {_end(x[i])}" for x in found.values())
        table.add_row(f"{rate:g}", *ends)
    console.print(table)
    console.print(f"mean (range) over {_SEEDS} seeds; {path}", highlight=False)
    return path


def _end(curves: np.ndarray) -> str:
    end = curves[:, -1]
    return f"{np.mean(end):.3g} ({end.min():.2g}–{end.max():.2g})"


def _figure(label: str, every: int, found: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    steps = every * np.arange(_POINTS + 1)
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (split, x) in zip(panels, found.items(), strict=True):
        for i, rate in enumerate(_RATES):
            axes.plot(steps, x[i].mean(0), color=_COLOURS[i], label=f"Adam, {rate:g}")
            axes.fill_between(
                steps, x[i].min(0), x[i].max(0), color=_COLOURS[i], alpha=0.2, lw=0
            )
        axes.set(title=f"{label}: {split}", xlabel="inner step")
        axes.spines[["top", "right"]].set_visible(False)
    low = min(float(np.nanmin(x)) for x in found.values())
    start = max(float(np.nanmax(x[..., 0])) for x in found.values())
    # A loss that falls to a tenth of where it began is read in decades. What rises far
    # above that has diverged, and would hide the others.
    if 0 < low < 0.1 * start:
        panels[0].set_yscale("log")
        panels[0].set_ylim(low / 2, 10 * start)
    else:
        panels[0].set_ylim(low - 0.1 * (start - low), start + 0.5 * (start - low))
    panels[0].set_ylabel("loss")
    panels[0].legend(frameon=False, fontsize="small")
    return figure
