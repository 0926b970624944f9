"""The results of a study: a row per variant, as JSON holds them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2o._names import expanded

from ._store import VERSION, write_whole

FILE = "tradeoffs.json"
_FORMAT = "l2o tradeoffs"


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
    content = {"format": _FORMAT, "version": VERSION, **content}
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_study(path: str | Path) -> dict[str, Any]:
    """What a study has found: a mapping with "rows", "scale", budgets and "origin".

    Args:
      path: of `tradeoffs.json`, or its folder.

    Raises:
      ValueError: it is no such file, a damaged one, or of another version.
    """
    path = expanded(path)
    path = path / FILE if path.is_dir() else path
    remedy = "delete it and run `l2o tradeoffs` again, which keeps what was measured"
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise KeyError("format")
        version = content["version"]
        for row in content["rows"]:
            row["name"], row["costs"]["flops"], row["times"], row["score"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no study of tradeoffs, or a damaged one ({error}): {remedy}"
        ) from error
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version}, this l2o reads {VERSION}: {remedy}"
        )
    return content
