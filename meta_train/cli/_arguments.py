"""Command lines: tyro reads them, and a complaint is one line of plain English."""

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from l2o.names import close_names, expanded

T = TypeVar("T")
_HELP = ("--help", "--help-all")  # a command with few options shows all for either
_FILES = (".html", ".json", ".svg", ".png")
# Comments of the source are not for users; positional arguments are named.
_STYLE = (tyro.conf.HelptextFromCommentsOff, tyro.conf.PositionalMetavarFromFieldName)


def parse(command: str, options: type[T], arguments: Sequence[str], **kwargs: Any) -> T:
    """The options of a command line.

    Args:
      command: the command's name.
      options: a dataclass of its options, as `tyro.cli` takes it.
      arguments: the command line after the command.
      **kwargs: for `tyro.cli`.

    Raises:
      SystemExit: help was asked for (0), or the line is wrong (2).
    """
    if any(argument == "" or argument.endswith("=") for argument in arguments):
        _refuse(command, "an argument is empty")
    known = list(option_names(options))
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in (*known, *_HELP):
            close = _suggestion(name, (*known, *_HELP))
            _refuse(command, f"there is no option {name}{close}")
    if _HELP[1] in arguments:
        arguments = [_HELP[0]]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parsed: Any = tyro.cli(
                options, prog=f"l2o {command}", args=arguments, config=_STYLE, **kwargs
            )
    except SystemExit as done:
        if done.code:
            _refuse(command, _plain(told.getvalue(), arguments))
        raise
    paths = {name: _expanded(value) for name, value in vars(parsed).items()}
    out = paths.get("out")
    if isinstance(out, Path) and (out.is_file() or out.suffix in _FILES):
        _refuse(command, f"--out takes a folder, and {out} is a file's name")
    return dataclasses.replace(parsed, **paths)


def _expanded(value: Any) -> Any:
    """Paths with `~` as the home folder."""
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    return expanded(value) if isinstance(value, Path) else value


def option_names(options: type) -> Iterator[str]:
    """Those of a dataclass and the dataclasses in it, such as "--outer-lr"."""
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, *marks = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if dataclasses.is_dataclass(kind):
            yield from option_names(kind)  # type: ignore[arg-type]
        elif tyro.conf.Positional not in marks:
            option = name.replace("_", "-")
            yield f"--{option}"
            if kind is bool:
                yield f"--no-{option}"


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = close_names(name, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _refuse(command: str, problem: str) -> None:
    told = f"{as_options(problem)} (`l2o {command} --help` shows the options)"
    print(f"l2o {command}: {told}", file=sys.stderr)
    raise SystemExit(2)


def as_options(problem: str) -> str:
    """A complaint about fields, such as Config.outer_lr, as one about --outer-lr."""

    def option(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-")

    return re.sub(
        r"\b(?:Config|Diagnosis|Evaluation|Following|Options)\.([a-z]\w*)",
        option,
        problem,
    )


def _plain(told: str, arguments: Sequence[str]) -> str:
    """What tyro's frame around a complaint says, in a line."""
    # A title, the problem, and advice, between rules of one kind of dash or another.
    rows = [line.strip("│ ") for line in told.splitlines()][1:]
    parts = itertools.groupby(rows, lambda row: bool(re.fullmatch("[-─╰╯]*", row)))
    problem = next(" ".join(part) for is_rule, part in parts if not is_rule)
    if found := re.match(r"Unrecognized options: (.*)", problem):
        return f"unexpected {found[1]}"
    if found := re.match(
        r"Missing from .*?: (\S+) (?:[A-Z]+ )?(.*) \(required", problem
    ):
        return f"{found[1]} is missing: {found[2]}"
    lacking = r"Missing value for argument '(\S+)'\. Expected (\d+) values"
    if found := re.match(lacking, problem):
        count = "a value" if found[2] == "1" else f"{found[2]} values"
        return f"{found[1]} needs {count}"
    choice = r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*)\)"
    if found := re.match(choice, problem):
        given, option, choices = found.groups()
        return f"{option} takes {choices.replace(chr(39), '')}, not {given!r}"
    if found := re.match(r"Error parsing (--\S+): ", problem):
        option = found[1]
        kind = next(
            (v for k, v in _KINDS.items() if f"{option} {k}" in told), "another value"
        )
        given = list(_values(option, arguments))
        if kind.startswith("a "):
            given = given[:1]  # what follows is another argument
        return f"{option} takes {kind}, not {' '.join(given)!r}"
    return re.sub("^Error parsing [a-z-]+: ", "", problem)


# How help shows what an option takes, and what that is.
_KINDS = {
    "[STR {None}": "names and values, such as `step_mult 0.01`",
    "INT INT": "two whole numbers",
    "{None}|{INT INT": "two whole numbers or None",
    "FLOAT FLOAT": "two numbers",
    "[INT": "whole numbers",
    "INT": "a whole number",
    "{None}|INT": "a whole number or None",
    "FLOAT": "a number",
    "{None}|FLOAT": "a number or None",
}


def _values(option: str, arguments: Sequence[str]) -> Iterator[str]:
    """What follows an option."""
    reading = False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("--"):
            reading = name.replace("_", "-") == option
            if reading and value:
                yield value
        elif reading:
            yield argument
