"""All results of an evaluation, each entrant with the trial that tuning has chosen."""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

import numpy as np

from l2o.names import expanded
from l2o.tasks import Split

from .._config import Tuning
from ..files._sealed import naming, read_sealed, require, write_sealed
from ._runs import Protocol
from ._scores import (
    Envelope,
    Speedup,
    area,
    diverged,
    envelope,
    final,
    improvement,
    rate_range,
    speedup,
)
from ._store import Result, Store, key_of
from ._timing import Timing, timing_of

REFERENCE = "adam"
MANIFEST = "evaluation.json"
_FORMAT = "l2o evaluation"
_VERSION = 2
_REMEDY = "evaluate again, which keeps the results that are there"


class Contestant(NamedTuple):
    """An entrant, as a board keeps it.

    Attributes:
      name, learned, tuned: as in `Entrant`.
      trials: task -> its results in the order of trials.
      rate: the one that was chosen for all tasks; None if one is per task.
      source, card: of its weights, as in `Entrant`.
    """

    name: str
    learned: bool
    tuned: str
    trials: Mapping[str, Sequence[Result]]
    rate: float | None = None
    source: str | None = None
    card: Mapping[str, Any] | None = None


class Board(NamedTuple):
    """Everything that tables and pages are made of.

    Attributes:
      protocol: of all runs but the long ones of Adam.
      tuning: of `Evaluation`.
      split: that runs are judged on.
      tasks: their names.
      contestants: by name; "adam" is the reference.
      long: task -> Adam's runs behind its envelope, a result per rate.
      timings: of updates alone, by name, as far as they were taken.
      notes: for the reader.
    """

    protocol: Protocol
    tuning: str
    split: str
    tasks: tuple[str, ...]
    contestants: Mapping[str, Contestant]
    long: Mapping[str, Sequence[Result]]
    timings: Mapping[str, Timing] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    def chosen(self, name: str, task: str) -> Result:
        """The trial that counts."""
        contestant = self.contestants[name]
        trials = contestant.trials[task]
        if self.tuning == "none":
            return trials[0]
        if self.tuning == "set":
            return next((x for x in trials if x.rate == contestant.rate), trials[0])
        return trials[best_trial(trials)]

    def at_edge(self, name: str, task: str) -> bool:
        """Whether the chosen rate is the smallest or largest that was tried."""
        trials = self.contestants[name].trials[task]
        rates = [x.rate for x in trials if x.rate is not None]
        if self.tuning != "task" or len(rates) < 3:
            return False
        return self.chosen(name, task).rate in (min(rates), max(rates))

    def rate_range(self, name: str, task: str) -> float:
        """Decades of rates about as good as the best; NaN where fewer than three ran.

        By the mean final loss that runs are judged by; a rate at which one diverged is
        out.
        """
        trials = self.contestants[name].trials[task]
        rates = [x.rate for x in trials if x.rate is not None]
        if len(rates) < 3:
            return np.nan
        lost = [np.any(diverged(x.curves["train"]["loss"])) for x in trials]
        losses = [np.mean(final(x.curves[self.split]["loss"])) for x in trials]
        return rate_range(rates, np.where(lost, np.inf, losses))

    def envelope(self, task: str) -> Envelope:
        """Adam's, of its long runs."""
        grid = [x.curves["train"]["loss"] for x in self.long[task]]
        return envelope(grid, self.protocol.eval_every)

    def speedup(self, name: str, task: str) -> Speedup:
        """Over the envelope, (seeds,)."""
        train = self.chosen(name, task).curves["train"]["loss"]
        return speedup(train, self.protocol.eval_every, self.envelope(task))

    def improvement(self, name: str, task: str) -> np.ndarray:
        """Of the loss that runs are judged by, against tuned Adam's; (seeds,)."""
        return self._improvement(self.chosen(name, task))

    def _improvement(self, result: Result) -> np.ndarray:
        rival = self.chosen(REFERENCE, result.task)
        loss = result.curves[self.split]["loss"]
        reached = float(np.mean(final(rival.curves[self.split]["loss"])))
        score = improvement(final(loss), loss[:, 0], reached)
        return np.where(diverged(result.curves["train"]["loss"]), 0.0, score)

    def scores_by_rate(self, name: str) -> dict[float, np.ndarray]:
        """What `scores` would be with one rate for all tasks, of those tried on all."""
        trials = self.contestants[name].trials
        found = {
            task: {x.rate: x for x in trials[task] if x.rate is not None}
            for task in self.tasks
        }
        common = set.intersection(*(set(x) for x in found.values()))
        return {
            rate: np.stack([self._improvement(x[rate]) for x in found.values()], 1)
            for rate in sorted(common)
        }

    def area(self, name: str, task: str) -> np.ndarray:
        """The same of the area under the curve of the training loss; (seeds,)."""
        loss, rival = (
            self.chosen(x, task).curves["train"]["loss"] for x in (name, REFERENCE)
        )
        score = improvement(area(loss), loss[:, 0], float(np.mean(area(rival))))
        return np.where(diverged(loss), 0.0, score)

    def areas(self, name: str) -> np.ndarray:
        """`area`, (seeds, tasks)."""
        return np.stack([self.area(name, task) for task in self.tasks], 1)

    def scores(self, name: str) -> np.ndarray:
        """`improvement`, (seeds, tasks)."""
        return np.stack([self.improvement(name, task) for task in self.tasks], 1)

    def speedups(self, name: str) -> Speedup:
        """`speedup`, (seeds, tasks)."""
        each = [self.speedup(name, task) for task in self.tasks]
        return Speedup(*(np.stack(x, 1) for x in zip(*each, strict=True)))


def best_trial(trials: Sequence[Result]) -> int:
    """The index of the lowest mean final loss on `outer_valid`.

    A trial of which a run is not finite comes last.
    """
    losses = [np.mean(final(x.curves["outer_valid"]["loss"])) for x in trials]
    return int(np.argmin([x if np.isfinite(x) else np.inf for x in losses]))


def save_board(folder: Path, board: Board, store: Store) -> Path:
    """Writes what `load_board` needs beside the results; returns its path.

    What neither the store nor a database of the package has is put into the store.
    """
    for trials in (*(c.trials for c in board.contestants.values()), board.long):
        for result in itertools.chain(*trials.values()):
            if store.get(key_of(result.setting)) is None:
                store.put(result)

    def keys(trials):
        return {t: [key_of(x.setting) for x in found] for t, found in trials.items()}

    content = {
        "protocol": board.protocol._asdict(),
        "tuning": board.tuning,
        "split": board.split,
        "tasks": board.tasks,
        "contestants": [
            {**c._asdict(), "trials": keys(c.trials)}
            for c in board.contestants.values()
        ],
        "long": keys(board.long),
        "timings": {name: list(x) for name, x in board.timings.items()},
        "notes": board.notes,
    }
    path = folder / MANIFEST
    write_sealed(path, _FORMAT, _VERSION, content)
    return path


def load_board(folders: Sequence[str | Path]) -> Board:
    """The board of one or more evaluations, which have to fit.

    Args:
      folders: that `l2o evaluate --out` wrote.

    Raises:
      ValueError: there is no evaluation, or a result of it is missing; or they differ
        in protocol, suite, version or tasks, or give one name to two optimizers. The
        message says which.
    """
    boards = [_load(expanded(folder)) for folder in folders]
    return functools.reduce(_merged, boards)


def _load(folder: Path) -> Board:
    path = folder / MANIFEST
    if not path.exists():
        raise ValueError(
            f"{folder} holds no evaluation: there is no {MANIFEST}. `l2o evaluate "
            f"--out {folder}` makes one"
        )
    content = read_sealed(
        path, _FORMAT, _VERSION, _REMEDY, schema=_Manifest, check=_check
    )
    board = _board(content, Store(folder / "results"))
    with naming(path, _FORMAT, _REMEDY):
        _check_results(board)
    return board


_Keys = dict[str, list[str]]  # task -> of results, in the order of trials


class _Contestant(TypedDict):
    name: str
    learned: bool
    tuned: str
    trials: _Keys
    rate: float | None
    source: str | None
    card: dict[str, Any] | None


class _Protocol(TypedDict):
    suite: str
    suite_version: int
    steps: int
    seeds: int
    eval_every: int
    eval_batches: int


class _Manifest(TypedDict):
    protocol: _Protocol
    tuning: Tuning
    split: Split
    tasks: list[str]
    contestants: list[_Contestant]
    long: _Keys
    timings: dict[str, list[float]]
    notes: list[str]


def _check(content: _Manifest) -> None:
    """What refers to each other, and ranges."""
    for field in ("steps", "seeds", "eval_every", "eval_batches"):
        require(content["protocol"][field] > 0, f"{field} is not positive")
    tasks, contestants = content["tasks"], content["contestants"]
    require(len(set(tasks)) == len(tasks) > 0, "its tasks are none, or named twice")
    names = [x["name"] for x in contestants]
    require(len(set(names)) == len(names), "two of its optimizers have one name")
    require(REFERENCE in names, f"{REFERENCE} is not among its optimizers")
    for name, trials in (
        *((x["name"], x["trials"]) for x in contestants),
        (f"long runs of {REFERENCE}", content["long"]),
    ):
        require(trials.keys() == set(tasks), f"{name} are of other tasks")
        for key in itertools.chain.from_iterable(trials.values()):
            require(re.fullmatch("[0-9a-f]{32}", key) is not None, f"{key!r:.40}")
        counts = set(map(len, trials.values()))
        require(len(counts) == 1 and 0 not in counts, f"{name} lack results")
    require(content["timings"].keys() <= set(names), "it times unknown optimizers")
    for values in content["timings"].values():
        timing_of(values)


def _check_results(board: Board) -> None:
    """That results are those of the protocol and the task under which they stand."""
    for name, trials in (
        *((x.name, x.trials) for x in board.contestants.values()),
        (f"long runs of {REFERENCE}", board.long),
    ):
        for task, results in trials.items():
            for result in results:
                file = f"{name} on {task}: results/{key_of(result.setting)}.json"
                # Long runs have more steps.
                fields = board.protocol._asdict().items()
                same = result.task == task and all(
                    result.setting.get(field) == value
                    for field, value in fields
                    if field != "steps" or trials is not board.long
                )
                require(same, f"{file} is of another setting")
                complete = {"train", "outer_valid", board.split} <= result.curves.keys()
                require(complete, f"{file} lacks a split, delete it")


def _board(content: _Manifest, store: Store) -> Board:
    def found(trials: _Keys) -> dict[str, tuple[Result, ...]]:
        return {t: tuple(map(one, keys)) for t, keys in trials.items()}

    def one(key: str) -> Result:
        result = store.get(key)
        if result is None:
            raise ValueError(
                f"{store.folder} lacks the result {key}: run `l2o evaluate` again, "
                "which makes what is missing"
            )
        return result

    contestants = [
        Contestant(
            c["name"],
            c["learned"],
            c["tuned"],
            found(c["trials"]),
            c["rate"],
            c["source"],
            c["card"],
        )
        for c in content["contestants"]
    ]
    return Board(
        Protocol(**content["protocol"]),
        content["tuning"],
        content["split"],
        tuple(content["tasks"]),
        {c.name: c for c in contestants},
        found(content["long"]),
        {name: timing_of(x) for name, x in content["timings"].items()},
        tuple(content["notes"]),
    )


def _merged(one: Board, other: Board) -> Board:
    """Both, if they fit."""
    for field, mine, theirs in (
        *zip(Protocol._fields, one.protocol, other.protocol, strict=True),
        ("tuning", one.tuning, other.tuning),
        ("tasks", list(one.tasks), list(other.tasks)),
    ):
        if mine != theirs:
            raise ValueError(
                "these evaluations cannot be put together: they differ in "
                f"{field.replace('_', ' ')}, {mine} and {theirs}"
            )
    contestants = dict(one.contestants)
    for name, c in other.contestants.items():
        known = contestants.get(name)
        if known is not None and _identity(known) != _identity(c):
            raise ValueError(
                f"these evaluations cannot be put together: {name} are two optimizers: "
                "rename a folder and evaluate it again"
            )
        if known is None or _count(c) > _count(known):
            contestants[name] = c
    notes = tuple(dict.fromkeys((*one.notes, *other.notes)))
    return one._replace(
        contestants=contestants,
        long={t: max(one.long[t], other.long[t], key=len) for t in one.tasks},
        timings={**other.timings, **one.timings},
        notes=notes,
    )


def _identity(contestant: Contestant) -> Any:
    first = next(iter(contestant.trials.values()))[0]
    return first.setting["identity"]


def _count(contestant: Contestant) -> int:
    return len(next(iter(contestant.trials.values())))
