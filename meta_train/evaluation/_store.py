"""Results on disk: one file per result, named by a hash of what it depends on."""

import dataclasses
import hashlib
import itertools
import json
import lzma
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2o.names import expanded

from ..files._sealed import (
    DIGEST,
    naming,
    read_json,
    read_sealed,
    require,
    require_type,
    write_sealed,
)

VERSION = 1  # of what a run computes; results of two are not to be mixed
DATABASES = Path(__file__).with_name("databases")
_DIGITS = 6  # significant ones
_RESULT, _DATABASE = "l2o result", "l2o results"
_SCHEMA = 1  # of both files
_REMEDY = "delete it, and `l2o evaluate` makes it again"


@dataclasses.dataclass(frozen=True)
class Result:
    """All seeds of one trial of one entrant on one task.

    Attributes:
      setting: what the curves depend on: version, suite, task, entrant's identity,
        rate, protocol. Its hash is the name of the file.
      entrant: its name; `learned`: whether it is a learned optimizer.
      curves: split -> metric -> (seeds, points), NaN where not finite. Databases keep
        the last points only of `outer_valid`, by which trials are chosen.
      state_bytes: of the optimizer's state, per parameter.
      parameters: of the task's model.
      seconds: per inner step, all that it takes, on a machine that may be shared.
      origin: code's versions, machine, time.
    """

    setting: Mapping[str, Any]
    entrant: str
    learned: bool
    curves: Mapping[str, Mapping[str, np.ndarray]]
    state_bytes: float
    parameters: int
    seconds: float
    origin: Mapping[str, Any]

    @property
    def task(self) -> str:
        return self.setting["task"]

    @property
    def rate(self) -> float | None:
        return self.setting["rate"]


def key_of(setting: Mapping[str, Any]) -> str:
    """First 32 digits of the SHA-256 of the setting."""
    text = json.dumps(setting, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Results by key: a folder, and behind it the databases of the package.

    Args:
      folder: made when the first result is put into it; None keeps nothing.
      shipped: whether results that came with the package are found, too.

    Example:
      >>> from l2o.meta_train.evaluation import Store
      >>> store = Store("runs/evaluation/results")
    """

    def __init__(
        self, folder: str | os.PathLike | None, *, shipped: bool = True
    ) -> None:
        self.folder = None if folder is None else expanded(folder)
        self._shipped: dict[str, Result] | None = None if shipped else {}

    def get(self, key: str, *, own: bool = False) -> Result | None:
        """The result of the setting with that `key_of`, or None.

        Args:
          key: the hash.
          own: whether only the folder is looked into.
        """
        if self.folder is not None:
            path = self.folder / f"{key}.json"
            if path.exists():
                return read_result(path)
        return None if own else self._database().get(key)

    def put(self, result: Result) -> None:
        """Writes it; a file of that name is replaced at once or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key_of(result.setting)}.json"
        write_sealed(path, _RESULT, _SCHEMA, _content(result))

    def _database(self) -> dict[str, Result]:
        if self._shipped is None:
            every = (
                result
                for path in sorted(DATABASES.glob("*.jsonl.xz"))
                for result in read_database(path)
            )
            self._shipped = {key_of(result.setting): result for result in every}
        return self._shipped


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
      ValueError: it holds something else, a result that was altered or of another
        version, or of another setting than its name says.
    """
    content = read_sealed(path, _RESULT, _SCHEMA, _REMEDY)
    with naming(path, _RESULT, _REMEDY):
        result = _result(content)
        expected = "it holds the result of another setting than its name says"
        require(key_of(result.setting) == path.stem, expected)
    return result


def read_database(path: Path) -> list[Result]:
    """The results in a file of `write_database`.

    Raises:
      ValueError: it holds something else, or was altered.
    """
    with naming(path, _DATABASE, "install l2o again"):
        try:
            text = lzma.decompress(path.read_bytes()).decode()
        except lzma.LZMAError as error:
            raise ValueError(f"it cannot be decompressed: {error}") from None
        head, _, lines = text.partition("\n")
        seal = read_json(head)
        require(seal == _seal_of(lines), "its first line is not of the rest")
        return [decode(line) for line in lines.splitlines()]


def write_database(path: Path, results: Iterable[Result]) -> None:
    """One compressed file of many results; the same results give the same bytes."""
    lines = "".join(sorted(encode(result) for result in results))
    head = json.dumps(_seal_of(lines), sort_keys=True) + "\n"
    path.write_bytes(lzma.compress((head + lines).encode()))


def _seal_of(lines: str) -> dict[str, Any]:
    digest = hashlib.sha256(lines.encode()).hexdigest()
    return {"format": _DATABASE, "version": _SCHEMA, DIGEST: digest}


def encode(result: Result) -> str:
    """One line of JSON; what is not finite becomes null."""
    return json.dumps(_content(result), sort_keys=True) + "\n"


def decode(text: str) -> Result:
    """The result that `encode` wrote.

    Raises:
      ValueError: it wrote something else.
    """
    return _result(read_json(text))


def _content(result: Result) -> dict[str, Any]:
    return rounded(dataclasses.asdict(result))


# By hand, because databases hold thousands: the types of what has none of its own.
_FIELDS: Mapping[str, tuple[type, ...]] = {
    "setting": (dict,),
    "entrant": (str,),
    "learned": (bool,),
    "curves": (dict,),
    "state_bytes": (float, int),
    "parameters": (int,),
    "seconds": (float, int),
    "origin": (dict,),
}
_SETTING: Mapping[str, tuple[type, ...]] = {
    "version": (int,),
    "task": (str,),
    "identity": (dict,),
    "rate": (float, int, type(None)),
    "steps": (int,),
    "seeds": (int,),
    "eval_every": (int,),
}


def _result(content: Any) -> Result:
    """The result of what `_content` made; `ValueError` for anything else."""
    require(isinstance(content, dict), "it is no object")
    _require_fields(content, _FIELDS)
    unknown = content.keys() - _FIELDS.keys()
    require(not unknown, f"it has an unknown {', '.join(sorted(unknown))}")
    setting = content["setting"]
    _require_fields(setting, _SETTING)
    found = setting["version"]
    require(found == VERSION, f"it has version {found}, this l2o reads {VERSION}")
    steps, every, seeds = (setting[k] for k in ("steps", "eval_every", "seeds"))
    fits = steps > 0 and every > 0 and seeds > 0 and steps % every == 0
    require(fits, "steps, eval_every and seeds do not fit each other")
    for name in ("state_bytes", "parameters", "seconds"):
        require(content[name] >= 0, f"{name} is negative")
    points = steps // every + 1
    curves: dict[str, dict[str, np.ndarray]] = {}
    for split, metrics in content["curves"].items():
        require_type(metrics, dict)
        curves[split] = {}
        for name, rows in metrics.items():
            curve = curves[split][name] = _curve(rows, f"{split} {name}")
            whole = (split, name) == ("train", "loss")
            allowed = (points,) if whole else range(1, points + 1)
            if len(curve) != seeds or curve.shape[1] not in allowed:
                raise ValueError(f"{split} {name} has the shape {curve.shape}")
    require("loss" in curves.get("train", {}), "it has no training loss")
    return Result(**{**content, "curves": curves})


def _require_fields(
    content: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]
) -> None:
    for name, known in types.items():
        # Not `isinstance`: a bool is an int.
        if type(content.get(name, ...)) not in known:
            raise ValueError(f"its {name} is {content.get(name)!r:.40}")


def _curve(rows: Any, name: str) -> np.ndarray:
    """(seeds, points) of lists of numbers, NaN for null."""
    lists = isinstance(rows, list) and all(isinstance(x, list) for x in rows)
    require(lists and len({len(x) for x in rows}) == 1, f"{name} is no table")
    kinds = set(map(type, itertools.chain.from_iterable(rows)))
    require(kinds <= {float, int, type(None)}, f"{name} holds no numbers")
    return np.array(rows, float)


def rounded(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(key): rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value) for value in x]
    if isinstance(x, np.ndarray):
        return rounded(x.tolist())
    if isinstance(x, float):
        return float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None
    return x
