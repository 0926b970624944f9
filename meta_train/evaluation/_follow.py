"""Scores the checkpoints of a run in progress, from another process."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from rich.console import Console

import l2o
from l2o.files import plain, present_arguments
from l2o.names import expanded
from l2o.tasks import TaskFamily, task_specs

from .._config import Following
from ..files._lock import locked
from ..files._sealed import DIGEST, digest_of, naming, require, require_type
from ..files._writing import writing
from ..training._checkpoints import attempt, steps
from ..training._folder import read_config
from ..training._metrics import read_records, rewrite_records
from ..training._outer import Outer
from ..training._population import Population
from ..training._recipe import make_families, theta_of
from ._curves import learning_curve

_SALT = 0xF0110  # keeps the draws apart from the run's and from `evaluate`'s


def follow(
    run: str | os.PathLike,
    config: Following = Following(),  # noqa: B008  frozen
    *,
    optimizer: l2o.LearnedOptimizer | None = None,
    families: Sequence[TaskFamily] | None = None,
    console: Console | None = None,
    poll: float = 2.0,
) -> list[dict[str, Any]]:
    """Scores every checkpoint of a run, as they come, until the run is complete.

    Each adds a line to `run/evaluations.jsonl`; the best so far is in `run/best`, a
    frozen optimizer whose card has its step and score. The score, the lower the better,
    is the mean over tasks, draws and curve points (but the first, before any update) of
    the loss on the split `outer_valid`, normalised as the task's meta-loss is: a run
    that diverges counts as the bound, or, of a task without one, as infinite (null).
    Started again, it goes on. The run is only read; a checkpoint that it deletes in the
    meantime is left out.

    Args:
      run: a run's folder.
      config: what to score on.
      optimizer: for a run of your own optimizer: that.
      families: in place of `config.families`; for a run of your own families: those.
      console: where scores are shown; standard output by default.
      poll: seconds between looks for new checkpoints.

    Returns:
      The lines of `evaluations.jsonl`; of those so far, after Ctrl-C.

    Raises:
      ValueError: no run is there, its optimizer or families are none that l2o makes,
        or it was followed under another `config` before.
      OSError: another process follows it, or the folder cannot be written.

    Example:
      >>> from l2o.meta_train import Following, follow
      >>> follow("runs/mine", Following(seeds=4))  # doctest: +SKIP
    """
    folder = expanded(run)
    console = console or Console(markup=False)
    content = _config(folder)
    if optimizer is None:
        optimizer = _optimizer(folder, content)
    if families is None:
        families = _families(folder, content, config.families)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with locked(
        folder / "evaluations.lock",
        "another `evaluate --follow`",
        "Wait for its end, or stop it",
        say,
    ):
        return _follow(folder, config, content, optimizer, families, say, poll)


def _follow(
    folder: Path,
    config: Following,
    content: dict[str, Any],
    optimizer: l2o.LearnedOptimizer,
    families: Sequence[TaskFamily],
    say: Callable[[str], None],
    poll: float,
) -> list[dict[str, Any]]:
    # As `follow`, alone.
    setting = dataclasses.asdict(config)
    del setting["families"]
    setting["tasks"] = [family.name for family in families]
    path = folder / "evaluations.jsonl"
    move = "move it and `best` away, and all checkpoints are scored again"
    records = read_records(path, "l2o scores of checkpoints", move, _check)
    if any(record["setting"] != setting for record in records):
        raise ValueError(
            f"{path} has scores made with {records[0]['setting']}, not with {setting}: "
            "follow with the same options, or move it and `best` away"
        )
    best = _Best(folder)
    programs = [_program(optimizer, family, config) for family in families]

    say(f"following {folder}: {len(records)} checkpoints scored so far")
    with (
        contextlib.closing(rewrite_records(path, records)) as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def score(theta: Any) -> dict[str, float]:
            # Threads, because a program of small models leaves cores idle.
            values = pool.map(
                lambda program, family: float(program(theta, family.data)),
                programs,
                families,
            )
            return {
                family.name: value if math.isfinite(value) else math.inf
                for family, value in zip(families, values, strict=True)
            }

        def add(step: int, theta: Any) -> None:
            start = time.perf_counter()
            scores = score(theta)
            mean = sum(scores.values()) / len(scores)
            record: dict[str, Any] = {
                "step": step,
                "score": plain(mean),
                "tasks": {name: plain(value) for name, value in scores.items()},
                "seconds": round(time.perf_counter() - start, 3),
                "setting": setting,
            }
            record[DIGEST] = digest_of(record)
            better = mean < min(
                (r["score"] for r in records if r["score"] is not None),
                default=math.inf,
            )
            # Before the record: killed in between, it is scored and exported again.
            if better:
                card = {"config": content, "outer_steps": step, "evaluation": record}
                best.replace(optimizer, theta, card)
            with writing(path):
                file.write(json.dumps(record) + "\n")
            records.append(record)
            mark = "  best so far" if better else ""
            say(f"outer step {step}/{content['outer_steps']}  score {mean:.4f}{mark}")

        with contextlib.suppress(KeyboardInterrupt):
            _watch(folder, optimizer, records, add, say, poll)
            found = best.path if best.path.exists() else "none has a finite score"
            say(f"the run is complete; best: {found}")
            return records
    say("stopped; the same command goes on")
    return records


def _watch(
    folder: Path,
    optimizer: l2o.LearnedOptimizer,
    records: Sequence[dict[str, Any]],
    add: Callable[[int, Any], None],
    say: Callable[[str], None],
    poll: float,
) -> None:
    """Calls `add` with each checkpoint's step and theta until the last one's."""
    checkpoints = folder / "checkpoints"
    outer = _outer(optimizer, _config(folder))
    done = {record["step"] for record in records}
    suspect: set[int] = set()
    while True:
        last = _config(folder)["outer_steps"]  # an override may have moved it
        for step in [s for s in steps(checkpoints) if s not in done]:
            found = attempt(checkpoints, step, (outer, []), part=True)
            if not isinstance(found, str):
                (read, _), _ = found
                add(step, theta_of(read))
                done.add(step)
            elif step not in suspect:
                suspect.add(step)  # the run may be deleting it
            elif step in steps(checkpoints):
                say(f"checkpoint {step} cannot be read ({found}): left out")
                done.add(step)
        if last in done and done.issuperset(steps(checkpoints)):
            return
        time.sleep(poll)


def _outer(
    optimizer: l2o.LearnedOptimizer, content: dict[str, Any]
) -> Outer | Population:
    """What of a run's state makes theta."""
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    wanted = "theta" if content.get("theta_average") is None else "average"
    outer = Outer(**{**dict.fromkeys(Outer._fields, ()), wanted: theta})
    population = content.get("population", 1)
    if population == 1:
        return outer

    def lead(x):
        return jax.ShapeDtypeStruct((population, *x.shape), x.dtype)

    score = jax.ShapeDtypeStruct((population,), jnp.float32)
    return Population(jax.tree.map(lead, outer), {}, score, ())  # type: ignore[arg-type]


def _program(
    optimizer: l2o.LearnedOptimizer, family: TaskFamily, config: Following
) -> Callable[[Any, Any], jax.Array]:
    """`(theta, data) -> score` on one family; compiled once for all checkpoints."""

    @jax.jit
    def program(theta: Any, data: Any) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            curve = learning_curve(
                optimizer.bind(theta, num_steps=config.steps),
                family,
                data,
                key,
                steps=config.steps,
                eval_every=config.eval_every,
                eval_batches=config.eval_batches,
                splits=("outer_valid",),
                normalized=True,
            )
            return jnp.mean(curve["outer_valid"]["loss"][1:])

        keys = jax.random.split(jax.random.key(_SALT), config.seeds)
        return jnp.mean(jax.lax.map(one, keys))

    return program


class _Record(TypedDict):
    step: int
    score: float | None
    tasks: dict[str, float | None]
    seconds: float
    setting: dict[str, Any]
    digest: str


def _check(record: dict[str, Any]) -> None:
    require_type(record, _Record)
    require(record[DIGEST] == digest_of(record), "it was altered since it was written")


class _Best:
    """`run/best`, replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "best"
        self._old, self._new = folder / "best.old", folder / "best.new"
        if self._old.exists() and not self.path.exists():
            self._old.rename(self.path)  # killed between the two renames below
        self._clear()

    def replace(
        self, optimizer: l2o.LearnedOptimizer, theta: Any, card: dict[str, Any]
    ) -> None:
        with writing(self.path):
            self._clear()
            l2o.save(self._new, optimizer, theta, card=card)
            if self.path.exists():
                self.path.rename(self._old)
            self._new.rename(self.path)
            self._clear()

    def _clear(self) -> None:
        for leftover in (self._old, self._new):
            if leftover.exists():
                shutil.rmtree(leftover)


def _config(folder: Path) -> dict[str, Any]:
    content = read_config(folder)
    if content is None:
        raise ValueError(f"{folder} holds no run: it lacks config.json")
    with naming(folder / "config.json", "configuration of a run", "restore it"):
        for name, kind in _NEEDED.items():
            found = content.get(name)
            require(isinstance(found, kind), f"its {name} is {found!r:.40}")
    return content


_NEEDED: dict[str, type | tuple[type, ...]] = {  # of `config.json`
    "optimizer": (str, type(None)),
    "optimizer_options": dict,
    "families": list,
    "reparam_level": str,
    "reparam_range": list,
    "task_families": list,
    "outer_steps": int,
}


def _optimizer(folder: Path, content: dict[str, Any]) -> l2o.LearnedOptimizer:
    if not content["optimizer"]:
        raise ValueError(
            f"{folder} trains an optimizer that no l2o factory makes: give it, "
            "`follow(run, optimizer=my_optimizer)`"
        )
    name, options = content["optimizer"], content["optimizer_options"]
    return l2o.make(name, **present_arguments(name, options))


def _families(
    folder: Path, content: dict[str, Any], tasks: Sequence[str]
) -> list[TaskFamily]:
    if tasks:
        return [spec.family() for spec in task_specs(tasks).values()]
    families = make_families(
        content["families"], content["reparam_level"], content["reparam_range"]
    )
    if [family.name for family in families] != content["task_families"]:
        raise ValueError(
            f"{folder} trains on families of its own "
            f"({', '.join(content['task_families'])}): give them, `follow(run, "
            "families=my_families)`, or name others with --families"
        )
    return families
