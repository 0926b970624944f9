"""What to type next, at the end of a command."""

import shlex
from pathlib import Path

from rich.console import Console


def hint(console: Console, what: str, *command: str | Path) -> None:
    """Prints a line such as "next: l2o report runs/mine  (a page of it)".

    Args:
      console: where it is printed.
      what: what the command is for.
      *command: the words of the command.
    """
    line = shlex.join(map(str, command))
    console.print(
        f"next: {line}  ({what})", highlight=False, markup=False, soft_wrap=True
    )


def hint_use(console: Console, source: str | Path) -> None:
    """How weights are used in Python."""
    line = f"use it: l2o.load({str(source)!r}, num_steps=...)"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
