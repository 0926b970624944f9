"""The results of a study: a row per variant, as JSON holds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from l2o.names import expanded

from ..files._sealed import read_sealed, require, write_sealed

FILE = "tradeoffs.json"
_FORMAT, _VERSION = "l2o tradeoffs", 2


def score_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What several meta-trainings of a variant have reached; None without any.

    Args:
      found: what `perform` has returned, a mapping per seed of meta-training.

    Returns:
      `mean` over everything; `low` and `high`: the smallest and largest mean of a
      meta-training; `seeds` of these; `runs`: scores behind the mean; `diverged` of
      them; `tasks`: means; and of one meta-training `seconds` (mean) and `inner_steps`,
      None where there was none; `stopped_early`: how many did.
    """
    if not found:
        return None
    scores = [[x["scores"][task] for task in found[0]["scores"]] for x in found]
    each = np.array(scores, float)  # (meta-trainings, tasks, seeds)
    of_training = each.mean((1, 2))
    seconds = [x["seconds"] for x in found if "seconds" in x]
    return {
        "mean": float(each.mean()),
        "low": float(of_training.min()),
        "high": float(of_training.max()),
        "seeds": len(found),
        "runs": each.size,
        "diverged": sum(x["diverged"] for x in found),
        "tasks": dict(zip(found[0]["scores"], each.mean((0, 2)).tolist(), strict=True)),
        "seconds": float(np.mean(seconds)) if seconds else None,
        "inner_steps": found[0].get("inner_steps"),
        "stopped_early": sum(bool(x.get("stopped_early")) for x in found),
    }


def common_size(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The largest matrix whose update was timed for all; None without one."""
    sizes = [{x["parameters"] for x in row["times"]} for row in rows]
    return max(set.intersection(*sizes), default=None) if sizes else None


def time_at(row: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The measurement at one of a row's sizes."""
    return next(x for x in row["times"] if x["parameters"] == size)


def write_study(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `tradeoffs.json`."""
    write_sealed(path, _FORMAT, _VERSION, content)


def load_study(path: str | Path) -> dict[str, Any]:
    """What a study has found: a mapping with "rows", "scale", budgets and "origin".

    Args:
      path: of `tradeoffs.json`, or its folder.

    Raises:
      ValueError: it is no such file, a damaged or altered one, or of another version.
    """
    path = expanded(path)
    path = path / FILE if path.is_dir() else path
    remedy = "delete it and run `l2o tradeoffs` again, which keeps what was measured"
    return read_sealed(path, _FORMAT, _VERSION, remedy, schema=_Study, check=_check)


class _Costs(TypedDict):
    meta_parameters: int
    state_bytes: float
    tensor_bytes: float
    flops: float
    tensor_flops: float
    temporary_bytes: float
    xla_temporary_bytes: float
    kernels: bool


class _Time(TypedDict):
    parameters: int
    ratio: float
    low: float
    high: float
    xla_ratio: float
    xla_low: float
    xla_high: float
    n: int
    seconds: float
    adam_seconds: float
    compile_seconds: float


class _Score(TypedDict):
    mean: float
    low: float
    high: float
    seeds: int
    runs: int
    diverged: int
    tasks: dict[str, float]
    seconds: float | None
    inner_steps: int | None
    stopped_early: int


class _Row(TypedDict):
    name: str
    architecture: str
    axis: str
    optimizer: dict[str, Any]
    costs: _Costs
    times: list[_Time]
    too_large_to_time: list[int]
    score: _Score | None


class _Study(TypedDict):
    scale: str
    training: dict[str, Any]
    evaluation: dict[str, Any]
    origin: dict[str, str]
    rows: list[_Row]


def _check(content: _Study) -> None:
    names = [row["name"] for row in content["rows"]]
    require(len(set(names)) == len(names), "two of its rows have one name")
    for row in content["rows"]:
        name, score = row["name"], row["score"]
        sizes = [x["parameters"] for x in row["times"]]
        require(len(set(sizes)) == len(sizes), f"{name} is timed twice at one size")
        for time in row["times"]:
            fits = 0 < time["low"] <= time["ratio"] <= time["high"]
            fits = fits and time["seconds"] > 0 < time["parameters"]
            require(fits, f"{name} has an impossible time")
        fits = score is None or score["low"] <= score["high"]
        require(fits, f"{name} has an impossible score")
