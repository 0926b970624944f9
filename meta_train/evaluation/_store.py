"""Results on disk: one file per result, named by a hash of what it depends on."""

import contextlib
import dataclasses
import hashlib
import json
import lzma
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2o._names import expanded

VERSION = 1  # of what a run computes; results of two are not to be mixed
DATABASES = Path(__file__).with_name("databases")
_DIGITS = 6  # significant ones


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

    def get(self, key: str) -> Result | None:
        """The result of the setting with that `key_of`, or None."""
        if self.folder is not None:
            path = self.folder / f"{key}.json"
            if path.exists():
                return read_result(path)
        return self._database().get(key)

    def put(self, result: Result) -> None:
        """Writes it; a file of that name is replaced at once or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key_of(result.setting)}.json"
        handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(encode(result))
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise

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
      ValueError: it holds something else, or a result of another version, or of
        another setting than its name says.
    """
    try:
        result = decode(path.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no result of an evaluation, or a damaged one ({error}): delete "
            "it, and the evaluation makes it again"
        ) from error
    if key_of(result.setting) != path.stem:
        raise ValueError(
            f"{path} holds the result of another setting than its name says: delete it"
        )
    return result


def read_database(path: Path) -> list[Result]:
    """The results in a file of `write_database`."""
    with lzma.open(path, "rt") as file:
        return [decode(line) for line in file]


def write_database(path: Path, results: Iterable[Result]) -> None:
    """One compressed file of many results; the same results give the same bytes."""
    lines = sorted(encode(result) for result in results)
    path.write_bytes(lzma.compress("".join(lines).encode()))


def encode(result: Result) -> str:
    """One line of JSON; what is not finite becomes null."""
    return json.dumps(_plain(dataclasses.asdict(result)), sort_keys=True) + "\n"


def decode(text: str) -> Result:
    """The result that `encode` wrote."""
    content = json.loads(text)
    version = content["setting"]["version"]
    if version != VERSION:
        raise ValueError(f"version {version}; this l2o reads {VERSION}")
    curves = {
        split: {name: np.array(rows, float) for name, rows in metrics.items()}
        for split, metrics in content["curves"].items()
    }
    return Result(**{**content, "curves": curves})


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if isinstance(x, np.ndarray):
        return _plain(x.tolist())
    if isinstance(x, float):
        return float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None
    return x
