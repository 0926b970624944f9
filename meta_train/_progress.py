"""How far a long command is: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console

_TENTHS = 10  # lines over the whole, where output is no terminal
_SECONDS = 5  # between two lines at least; the last one is always printed


class Progress:
    """What is done of something, and the time that is left.

    On a terminal it is a bar. Elsewhere it is at most ten plain lines, such as
    "outer step 400/1000  meta-loss 1.2034  about 3 min left".

    Args:
      title: what is counted, such as "outer step".
      console: where it is shown.
      total: how many there are; None is not known yet.
      done: how many were done before.
    """

    def __init__(
        self, title: str, console: Console, total: int | None = None, done: int = 0
    ) -> None:
        self._title, self._console, self._total = title, console, total
        self._done = done
        self._said = time.perf_counter()
        # What was done when measuring began: at the first call, where it is not known
        # how long the program took to compile.
        self._first: tuple[int, float] | None = None
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Shows that so many are done.

        Args:
          done: in all, with those of before.
          total: how many there are, if that has changed.
          note: what else to show, such as the meta-loss.
        """
        if total is not None:
            self._total = total
        self._bar.update(self._task, completed=done, total=self._total, note=note)
        before, self._done = self._done, done
        now = time.perf_counter()
        self._first = self._first or (done, now)
        if not self._bar.disable or not self._total or done == before:
            return
        tenth = done * _TENTHS // self._total > before * _TENTHS // self._total
        if done == self._total or (tenth and now - self._said >= _SECONDS):
            self._said = now
            self._console.print(
                "  ".join(filter(None, [self._line(), note, self._left(now)])),
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def advance(self) -> None:
        """Shows that one more is done."""
        self.update(self._done + 1)

    def _line(self) -> str:
        return f"{self._title} {self._done}/{self._total}"

    def _left(self, now: float) -> str:
        done, start = self._first or (self._done, now)
        missing = (self._total or 0) - self._done
        if missing <= 0 or self._done <= done:
            return ""
        seconds = (now - start) / (self._done - done) * missing
        return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Readable to two digits, such as "40 s", "3 min" or "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
