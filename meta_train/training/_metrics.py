"""What a run shows and writes: progress, metrics.jsonl and TensorBoard events."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.proto.summary_pb2 import Summary

from l2o.files import write_whole

from .._progress import Progress
from ..files._sealed import naming, require
from ..files._writing import reading, writing

_FLUSH_SECONDS = 10  # between flushes of TensorBoard's file
_SMOOTHING = 0.98  # of the meta-loss on the screen: about 50 outer steps


class Metrics:
    """Appends one record per outer step to `metrics.jsonl` and to TensorBoard.

    Records after `last_step` are dropped first: a resumed run repeats those steps.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        self._folder = folder
        kept = [r for r in read_metrics(folder) if r["step"] <= last_step]
        self._file = rewrite_records(folder / "metrics.jsonl", kept)
        with writing(folder / "tensorboard"):
            (folder / "tensorboard").mkdir(exist_ok=True)
            # Not tensorboardX's SummaryWriter: where its thread meets a full disk, it
            # dies, and `add_scalar` then waits for it for ever.
            # An absolute path, because it takes one that begins with "s3:" for a URL.
            self._events = EventsWriter(
                str(folder.absolute() / "tensorboard" / "events"), f".{os.getpid()}"
            )
            purge = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._event(last_step + 1, session_log=purge)
            self._events.flush()
        self._flushed = time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        """`record` has a "step"; its other numbers become TensorBoard scalars.

        Raises:
          OSError: it cannot be written; the message names the folder and the remedy.
        """
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float)
        ]
        with writing(self._folder):
            self._file.write(json.dumps(record) + "\n")
            self._event(record["step"], summary=Summary(value=values))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes both files."""
        with writing(self._folder):
            try:
                self._file.close()
            finally:
                self._events.close()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(
            event_pb2.Event(wall_time=time.time(), step=step, **content)
        )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line cut short by a kill is left out.

    Raises:
      ValueError: a line is no record of a run.
    """
    remedy = "restore it, or move it away: the run resumes without its old curve"
    return read_records(folder / "metrics.jsonl", "l2o metrics", remedy, _check)


def _check(record: dict[str, Any]) -> None:
    require(isinstance(record.get("family"), str), "it has no family")
    loss = record.get("meta_loss")
    numbers = (float, int, type(None))
    require(type(loss) in numbers, f"its meta-loss is {loss!r:.40}")


def read_records(
    path: Path, kind: str, remedy: str, check: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """A JSON object per line, each of a later "step"; [] without a file.

    Args:
      path: of the file; a last line cut short by a kill is left out.
      kind, remedy: what the file is and what to do about another, for the message.
      check: raises `ValueError` for an object that is no such record.

    Raises:
      ValueError: another line is no such record.
    """
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    with naming(path, kind, remedy):
        with reading(path):
            *lines, _ = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            with _at(number):
                record = json.loads(line)
                require(isinstance(record, dict), "it is no object")
                step = record.get("step")
                after = records[-1]["step"] if records else -1
                later = type(step) is int and step > after
                require(later, f"its step is {step!r:.40}, after {after}")
                check(record)
            records.append(record)
    return records


@contextlib.contextmanager
def _at(number: int) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise ValueError(f"line {number}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def rewrite_records(path: Path, records: list[dict[str, Any]]) -> IO[str]:
    """Replaces the file atomically; returns it, open for appending."""
    with writing(path):
        write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
        # By lines: whoever watches the run sees every step, and a kill loses none.
        return path.open("a", buffering=1)


class Meter:
    """Outer steps done, smoothed meta-loss, inner steps per second, time left."""

    def __init__(self, total: int, start: int, console: Console) -> None:
        self._smooth: np.ndarray | None = None  # meta-loss, inner steps, seconds
        self._progress = Progress("outer step", console, total, start)
        self._progress.__enter__()

    def update(self, step: int, meta_loss: float, steps: int, seconds: float) -> None:
        """Call once per outer step, with its inner steps and wall time."""
        new = np.array([meta_loss, steps, seconds])
        old = new if self._smooth is None else self._smooth
        self._smooth = _SMOOTHING * old + (1 - _SMOOTHING) * new
        loss, steps, seconds = self._smooth
        rate = f"{steps / max(seconds, 1e-9):,.0f}"
        note = f"meta-loss {loss:.4f}  {rate} inner steps/s"
        self._progress.update(step, note=note)

    def close(self) -> None:
        """Leaves the progress as it stands."""
        self._progress.__exit__(None, None, None)
