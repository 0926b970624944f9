"""Makes or continues the baseline database of a suite that comes with the package.

    python scripts/recipes/baseline_database.py runs/baselines
    python scripts/recipes/baseline_database.py runs/baselines --pack-only

Results of shipped optimizers that lie in the folder go into the database too.

Every baseline on every task of `heldout/small`, seven trials, three seeds, and Adam for
five times the steps, for its envelope. Hours on two cores; what is in
the folder, or in the database already, is not run again. Then all results of the suite
are written into one file of the package, and what their updates cost beside it. An
evaluation finds them there, so that only one's own optimizer has to be run.

What the file keeps of a result: curves to four digits, but of `outer_valid`, by which
trials are chosen, and of all but the training loss of long runs, only the last five
points.
"""

import argparse
import dataclasses
import time
from pathlib import Path

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

SUITE = "heldout/small"
# What people ask about comes first, in case time runs out.
FIRST = (
    "adam", "adamw", "adamw+cosine", "sgdm", "nadamw", "muon", "prodigy",
    "schedule_free_adamw", "lion", "rmsprop", "radam", "adabelief", "ademamix",
    "sophia", "sam", "adafactor", "yogi", "momo_adam", "dadapt_adamw", "muon+cosine",
)  # fmt: skip
TOGETHER = 3  # one alone leaves cores idle at its last task
LAST = ("lbfgs",)  # its line searches take as long as ten others


def names() -> list[str]:
    """All entrants, in order."""
    rest = [x for x in sorted(every_baseline()) if x not in (*FIRST, *LAST)]
    return [*FIRST, *rest, *LAST]


def run(store: Store) -> None:
    """Few entrants at a time, so that what there is is complete for them."""
    start, done = time.perf_counter(), 0
    for first in range(0, len(names()), TOGETHER):
        some = tuple(names()[first : first + TOGETHER])
        evaluate(Evaluation(suite=SUITE, optimizers=some), store=store)
        done += len(some)
        minutes = (time.perf_counter() - start) / 60
        print(f"{done}/{len(names())} {', '.join(some)}, {minutes:.0f} min", flush=True)


def short(result: Result) -> Result:
    """What the database keeps of it."""

    def rounded(curve, points):
        digits = [[float(f"{x:.4g}") for x in row] for row in curve[:, -points:]]
        return np.array(digits)

    long = result.setting["steps"] > load_suite(SUITE).steps
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


def pack(folder: Path) -> Path:
    """Adds what is in the folder to the database of the suite; returns its path."""
    path = DATABASES / (SUITE.replace("/", "_") + ".jsonl.xz")
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
        if setting["suite"] == SUITE and (baseline or shipped):
            found[file.stem] = short(result)
    write_database(path, found.values())
    write_timings(DATABASES, read_timings(folder))
    entrants = {x.entrant for x in found.values()}
    size = path.stat().st_size / 2**20
    print(f"{path}: {len(found)} results of {len(entrants)} entrants, {size:.1f} MiB")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pack-only", action="store_true")
    options = parser.parse_args()
    configure_process()
    if not options.pack_only:
        run(Store(options.folder))
    pack(options.folder)


if __name__ == "__main__":
    main()
