"""The study: what is measured, in which order, and what is written."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import matplotlib
from rich.console import Console

import l2o
from l2o.names import unknown_name

from .._progress import Progress
from ..evaluation._runs import origin
from . import _costs, _performance, _times
from ._figures import figures
from ._grid import REFERENCE, Variant, grid, identity_of, reference
from ._program import chosen_backend
from ._rows import FILE, score_of, write_study
from ._scales import Scale, scale_of
from ._store import VERSION, Measurements
from ._tables import ablation_table, ablations, cost_table, result_table

Stage = Literal["costs", "times", "performance"]
_STAGES: tuple[Stage, ...] = ("costs", "times", "performance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which parts of a study are made.

    Attributes:
      variants: Only these variants, of any scale; by default all of the scale.
      until: Last part: costs (exact, a few seconds each), times (of updates) or
        performance (meta-trains every variant).
      seeds: Meta-trainings of each variant; by default as many as the scale has.
    """

    variants: tuple[str, ...] = ()
    until: Stage = "performance"
    seeds: int | None = None


class _Job(NamedTuple):
    stage: Stage
    variant: Variant
    detail: int | None  # size of a matrix, or seed
    setting: Mapping[str, Any]
    measure: Callable[[], Mapping[str, Any]]


def study(
    scale: str,
    out: Path,
    *,
    console: Console,
    options: Options = Options(),
) -> Path:
    """Measures what learned optimizers cost and reach; prints, writes and draws it.

    What `out` holds already is not measured again: the same call goes on with a study
    that was ended. Costs come first, then times, then meta-training; after each of
    them results are written, at the end or when a signal comes figures, too.

    Args:
      scale: "smoke" (a minute), "laptop" (hours) or "cluster" (everything).
      out: folder for `tradeoffs.json`, `figures/`, `measurements/` and meta-training.
      console: for progress and tables.
      options: what of it is made.

    Returns:
      The path of `tradeoffs.json`.

    Raises:
      ValueError: an unknown scale or variant; a measurement that is damaged or of
        another version.
      KeyboardInterrupt: a signal came while meta-training, whose checkpoint is kept.

    Example:
      >>> from pathlib import Path
      >>> from rich.console import Console
      >>> from l2o.meta_train.tradeoffs import study
      >>> study("smoke", Path("runs/tradeoffs"), console=Console())  # doctest: +SKIP

    Source: "Practical tradeoffs between memory, compute, and performance in learned
    optimizers" (Metz et al., 2022).
    """
    chosen = _chosen(scale_of(scale), options)
    out.mkdir(parents=True, exist_ok=True)
    store = Measurements(out / "measurements")
    start = time.perf_counter()
    for stage in _STAGES[: _STAGES.index(options.until) + 1]:
        jobs = list(_jobs(stage, chosen, out, store))
        missing = [job for job in jobs if store.get(job.setting) is None]
        console.print(
            f"{stage}: {len(missing)} of {len(jobs)} to measure", highlight=False
        )
        with Progress(stage, console, len(missing)) as progress:
            try:
                for job in missing:
                    store.put(job.setting, job.measure())
                    progress.advance()
            except KeyboardInterrupt:
                _draw(_write(scale, chosen, out, store), out)
                raise
        rows = _write(scale, chosen, out, store)
    _draw(rows, out)
    console.print(cost_table(rows))
    if options.until != "costs":
        console.print(result_table(rows))
    if ablations(rows):
        console.print(ablation_table(rows))
    path = out / FILE
    console.print(
        f"{time.perf_counter() - start:.0f} s; {path.resolve()} and figures",
        highlight=False,
        soft_wrap=True,
    )
    return path


def _chosen(scale: Scale, options: Options) -> Scale:
    variants = scale.variants
    if options.variants:
        known = {REFERENCE: reference(), **grid()}
        for name in options.variants:
            if name not in known:
                listed = f"the scale has {', '.join(scale.variants)}"
                listed += "; `tradeoffs.grid()` has all"
                raise ValueError(unknown_name("variant", name, known, listed=listed))
        variants = {name: known[name] for name in options.variants}
    seeds = scale.seeds if options.seeds is None else options.seeds
    if seeds < 1:
        raise ValueError(f"Options.seeds must be positive, not {seeds}")
    everyone = {REFERENCE: reference(), **variants}
    return scale._replace(variants=everyone, seeds=seeds)


def _jobs(stage: Stage, scale: Scale, out: Path, store: Measurements) -> Iterator[_Job]:
    """The measurements of a stage, the cheaper ones first."""
    variants = list(scale.variants.values())
    if stage == "costs":
        for variant in variants:
            yield _cost_job(variant)
    elif stage == "times":
        for size in sorted(scale.parameters):
            for variant in variants:
                if fits(_costs_of(variant, store), size):
                    yield _time_job(variant, size, scale)
    else:
        variants.sort(key=lambda x: _costs_of(x, store)["flops"])
        # A study that is ended early has something of every variant.
        for seed in range(scale.seeds):
            for variant in variants:
                if seed == 0 or variant.name != REFERENCE:
                    yield _performance_job(variant, seed, scale, out)


def _cost_job(variant: Variant) -> _Job:
    setting = {**_common("costs", variant), "machine": _machine()}
    return _Job(
        "costs", variant, None, setting, lambda: _costs.count_costs(variant.optimizer)
    )


def _time_job(variant: Variant, size: int, scale: Scale) -> _Job:
    setting = {
        **_common("times", variant),
        "machine": _machine(),
        "parameters": size,
        "updates": scale.updates,
    }

    def measure():
        return _times.time_update(variant.optimizer, size, scale.updates)

    return _Job("times", variant, size, setting, measure)


def _performance_job(variant: Variant, seed: int, scale: Scale, out: Path) -> _Job:
    training = dataclasses.replace(scale.training, seed=seed)
    setting = {
        **_common("performance", variant),
        # Adam is not meta-trained.
        "training": None
        if variant.name == REFERENCE
        else _performance.training_setting(variant, training),
        "evaluation": _performance.evaluation_setting(scale.evaluation),
    }

    def measure():
        return _performance.perform(variant, training, scale.evaluation, out)

    return _Job("performance", variant, seed, setting, measure)


def _common(stage: Stage, variant: Variant) -> dict[str, Any]:
    identity = identity_of(variant.optimizer)
    return {"version": VERSION, "stage": stage, "optimizer": identity}


def _machine() -> dict[str, Any]:
    """What costs and times depend on beside the optimizer."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "backend": chosen_backend(),
        "kernels": l2o.native_kernels(),
    }


def fits(costs: Mapping[str, Any], size: int) -> bool:
    """Whether timing the update of so many parameters takes no more than 4 GB."""
    return _times.memory(costs, size) <= _times.MEMORY


def _costs_of(variant: Variant, store: Measurements) -> dict[str, Any]:
    found = store.get(_cost_job(variant).setting)
    assert found is not None, "costs are measured first"
    return found


def _write(
    scale_name: str, scale: Scale, out: Path, store: Measurements
) -> list[dict[str, Any]]:
    """Writes what is known; returns the rows."""
    known: dict[str, dict[Stage, list[Any]]] = {
        name: {stage: [] for stage in _STAGES} for name in scale.variants
    }
    for stage in _STAGES:
        for job in _jobs(stage, scale, out, store):
            values = store.get(job.setting)
            if values is not None:
                known[job.variant.name][stage].append(values)
    rows = []
    for name, variant in scale.variants.items():
        if not known[name]["costs"]:
            continue  # ended before
        costs = known[name]["costs"][0]
        large = [x for x in scale.parameters if not fits(costs, x)]
        rows.append(
            {
                "name": name,
                "architecture": variant.architecture,
                "axis": variant.axis,
                "optimizer": identity_of(variant.optimizer),
                "costs": costs,
                "times": known[name]["times"],
                "too_large_to_time": large,
                "score": score_of(known[name]["performance"]),
            }
        )
    content = {
        "scale": scale_name,
        "training": _performance.budget(scale.training),
        "evaluation": dataclasses.asdict(scale.evaluation),
        "origin": dict(origin()),
        "rows": rows,
    }
    write_study(out / FILE, content)
    return rows


def _draw(rows: list[dict[str, Any]], out: Path) -> None:
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "l2o"}):
        for title, figure, _ in figures(rows):
            path = folder / title.lower().replace(" ", "_")
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            figure.savefig(path.with_suffix(".png"), dpi=130)
