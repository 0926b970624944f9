"""Makes or continues the baseline database of a suite that comes with the package.

    python scripts/recipes/baseline_database.py runs/baselines
    python scripts/recipes/baseline_database.py runs/baselines --pack-only
    python scripts/recipes/baseline_database.py runs/medium --suite heldout/medium

What is in the folder, or in the database already, is not run again; what was stopped
goes on. Then all results of the suite are written into one file of the package, and
what their updates cost beside it. An evaluation finds them there, so that only one's
own optimizer has to be run. Results of shipped optimizers that lie in the folder go
into it too.

heldout/small: every baseline, seven trials, three seeds, and Adam for five times the
steps, for its envelope. Hours on two cores.

heldout/medium: seven baselines, five trials, first one seed of all, then two. Half a
day on one core.

What the file keeps of a result: curves to four digits, but of `outer_valid`, by which
trials are chosen, and of all but the training loss of long runs, only the last five
points.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import l2o
from l2o.meta_train import Evaluation
from l2o.meta_train.cli import configure_process
from l2o.meta_train.evaluation import (
    DATABASES,
    WINDOW,
    Result,
    Store,
    evaluate,
    every_baseline,
    key_of,
    read_database,
    read_result,
    read_timings,
    write_database,
    write_timings,
)
from l2o.tasks import load_suite

SUITES = ("heldout/small", "heldout/medium")
# What people ask about comes first, in case time runs out.
FIRST = (
    "adam", "adamw", "adamw+cosine", "sgdm", "nadamw", "muon", "prodigy",
    "schedule_free_adamw", "lion", "rmsprop", "radam", "adabelief", "ademamix",
    "sophia", "sam", "adafactor", "yogi", "momo_adam", "dadapt_adamw", "muon+cosine",
)  # fmt: skip
LAST = ("lbfgs",)  # its line searches take as long as ten others
# Together: one alone leaves cores idle at its last task.
MEDIUM = (
    ("adamw+cosine", "adam", "muon_hidden+cosine"),
    ("schedule_free_adamw", "prodigy", "adamw+linear", "adamw"),
)


class Plan(NamedTuple):
    """What is run on a suite.

    Attributes:
      groups: of entrants that are run together, the first ones first.
      seeds: all groups with so many seeds, then with as many as the next one says.
      trials, adam_horizon: as in `Evaluation`.
    """

    groups: Sequence[tuple[str, ...]]
    seeds: tuple[int, ...]
    trials: int
    adam_horizon: int


def plan_of(suite: str) -> Plan:
    if suite == "heldout/medium":
        return Plan(MEDIUM, (1, 2), 5, 1)
    rest = [x for x in sorted(every_baseline()) if x not in (*FIRST, *LAST)]
    every = (*FIRST, *rest, *LAST)
    groups = [every[i : i + 3] for i in range(0, len(every), 3)]
    return Plan(groups, (3,), 7, 5)


def run(suite: str, store: Store) -> None:
    """Few entrants at a time, so that what there is is complete for them."""
    plan, start = plan_of(suite), time.perf_counter()
    for seeds in plan.seeds:
        for group in plan.groups:
            config = Evaluation(
                suite=suite,
                optimizers=group,
                seeds=seeds,
                trials=plan.trials,
                adam_horizon=plan.adam_horizon,
            )
            evaluate(config, store=store, on_progress=report)
            minutes = (time.perf_counter() - start) / 60
            done = f"{', '.join(group)}, {seeds} seeds, {minutes:.0f} min"
            print(done, flush=True)


def report(done: int, total: int) -> None:
    print(f"{done}/{total} {time.strftime('%H:%M')}", flush=True)


def short(result: Result, steps: int) -> Result:
    """What the database keeps of it, in a suite of so many steps."""

    def rounded(curve, points):
        digits = [[float(f"{x:.4g}") for x in row] for row in curve[:, -points:]]
        return np.array(digits)

    long = result.setting["steps"] > steps
    curves = {
        split: {
            name: rounded(x, x.shape[1] if whole(split, name, long) else WINDOW)
            for name, x in metrics.items()
        }
        for split, metrics in result.curves.items()
    }
    return dataclasses.replace(result, curves=curves)


def whole(split: str, metric: str, long: bool) -> bool:
    if long:
        return (split, metric) == ("train", "loss")
    return split != "outer_valid"


def pack(suite: str, folder: Path) -> Path:
    """Adds what is in the folder to the database of the suite; returns its path."""
    path = DATABASES / (suite.replace("/", "_") + ".jsonl.xz")
    steps = load_suite(suite).steps
    DATABASES.mkdir(exist_ok=True)
    found = {}
    if path.exists():
        found = {key_of(x.setting): x for x in read_database(path)}
    for file in sorted(folder.glob("*.json")):
        if file.name == "timings.json":
            continue
        result = read_result(file)
        setting = result.setting
        baseline = "baseline" in setting["identity"]
        shipped = result.entrant.partition(":")[0] in l2o.shipped()
        if setting["suite"] == suite and (baseline or shipped):
            found[file.stem] = short(result, steps)
    write_database(path, found.values())
    write_timings(DATABASES, read_timings(folder))
    entrants = {x.entrant for x in found.values()}
    size = path.stat().st_size / 2**20
    print(f"{path}: {len(found)} results of {len(entrants)} entrants, {size:.1f} MiB")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--pack-only", action="store_true")
    options = parser.parse_args()
    configure_process()
    if not options.pack_only:
        run(options.suite, Store(options.folder))
    pack(options.suite, options.folder)


if __name__ == "__main__":
    main()
