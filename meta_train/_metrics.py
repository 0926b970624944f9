"""What a run shows and writes: a progress bar, metrics.jsonl and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_SMOOTHING = 0.98  # of the meta-loss on the screen: about 50 outer steps


class Metrics:
    """Appends one record per outer step to `metrics.jsonl` and to TensorBoard.

    Records after `last_step` are dropped first: a resumed run repeats those steps.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(folder) if r["step"] <= last_step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self._path)
        # By lines: whoever watches the run sees every step, and a kill loses none.
        self._file = self._path.open("a", buffering=1)
        self._tensorboard = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=last_step + 1, flush_secs=10
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """`record` has a "step"; its other numbers become TensorBoard scalars."""
        self._file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._tensorboard.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class ProgressBar:
    """Outer steps done, smoothed meta-loss, inner steps per second, time left.

    On something that is not a terminal it prints ten plain lines over the run instead.
    """

    def __init__(self, total: int, start: int, console: Console) -> None:
        self._console = console
        self._total = total
        self._smooth: np.ndarray | None = None  # meta-loss, inner steps, seconds
        self._bar = Progress(
            TextColumn("meta-training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("meta-loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} inner steps/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=total, completed=start, loss="-", rate="-"
        )
        self._bar.start()

    def update(self, step: int, meta_loss: float, steps: int, seconds: float) -> None:
        """Call once per outer step, with its inner steps and wall time."""
        new = np.array([meta_loss, steps, seconds])
        old = new if self._smooth is None else self._smooth
        self._smooth = _SMOOTHING * old + (1 - _SMOOTHING) * new
        loss, steps, seconds = self._smooth
        shown_loss = f"{loss:.4f}"
        rate = f"{steps / max(seconds, 1e-9):,.0f}"
        self._bar.update(self._task, completed=step, loss=shown_loss, rate=rate)
        if self._bar.disable and step * 10 // self._total > (
            (step - 1) * 10 // self._total
        ):
            self._console.print(
                f"outer step {step}/{self._total}  meta-loss {shown_loss}  "
                f"{rate} inner steps/s",
                highlight=False,
            )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()
