"""What users name: which texts are paths, which names were meant, which are old."""

import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REMOVAL = "0.2"  # the version that has no name which warns now


def expanded(path: str | os.PathLike) -> Path:
    """The path, with a leading `~` replaced by the home folder."""
    return Path(os.path.expanduser(path))


def is_hub_id(name: str) -> bool:
    """Whether a text has the form `owner/name` or `owner/name@revision`.

    Neither part begins with a dot or a tilde: such texts are paths.
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?", name) is not None


def is_path(name: str | os.PathLike) -> bool:
    """Whether a user's text is a path by its spelling, whatever lies on the disk.

    Absolute ones are, those that begin with `.` or `~`, and those with a separator that
    no hub's id has the form of. A bare word is a name.
    """
    if not isinstance(name, str):
        return True
    if name in (".", "..") or name.startswith("~") or Path(name).is_absolute():
        return True
    return has_separator(name) and not is_hub_id(name)


def has_separator(name: str) -> bool:
    """Whether a text consists of several parts, as paths do."""
    return any(x in name for x in {"/", os.sep, os.altsep or os.sep})


def close_names(name: str, known: Sequence[str]) -> list[str]:
    """Up to three of the known names that a mistyped one is near to."""
    return difflib.get_close_matches(name, known, 3, 0.6)


def unknown_name(
    what: str,
    name: object,
    known: Iterable[str],
    *,
    listed: str = "",
    paths: str = "",
) -> str:
    """The message about a name that is none of the known ones.

    Args:
      what: the kind of thing, such as "preset".
      name: what the user wrote.
      known: the names that there are.
      listed: where they are listed, if they are too many for a message.
      paths: what else the user may give by its path, such as "a folder of weights".
    """
    known = list(known)
    listed = listed or f"known: {', '.join(known) or 'none'}"
    message = f"unknown {what} {name!r}; {listed}"
    close = close_names(str(name), known)
    if close:
        message += f". Did you mean {' or '.join(map(repr, close))}?"
    if paths:
        is_there = Path(str(name)).exists()
        here = f"{name} in this folder" if is_there else paths
        message += "" if message.endswith("?") else "."
        message += f" For {here} write a path: ./{name if is_there else 'NAME'}"
    return message


def check_known(what: str, name: object, known: Iterable[str | None]) -> None:
    """Raises `ValueError`, with `unknown_name`'s message, for none of the known ones.

    Args:
      what: the kind of thing, such as "preset".
      name: what the user wrote.
      known: the names that there are; None may be among them.
    """
    names = list(known)
    if not isinstance(name, str | None) or name not in names:
        raise ValueError(unknown_name(what, name, map(str, names)))


def present_name(what: str, name: str, old: Mapping[str, str]) -> str:
    """The name that a thing has now; warns where the user gave its old one.

    Args:
      what: the kind of thing, such as "preset".
      name: what the user wrote.
      old: names that were changed, with the new ones.
    """
    if name not in old:
        return name
    warnings.warn(
        f"the {what} {name} is called {old[name]} now; the old name goes in {REMOVAL}",
        DeprecationWarning,
        stacklevel=3,
    )
    return old[name]


def renamed(
    module: str, names: Mapping[str, tuple[str, Callable[[], Any]]]
) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that were changed: they work, and warn.

    Args:
      module: its name.
      names: the old names, each with the new one, for the message, and a function that
        returns what it stands for.

    Example:
      >>> from l2o.names import renamed
      >>> __getattr__ = renamed(__name__, {"old": ("new", lambda: 1)})
    """

    def module_getattr(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, value = names[name]
        warnings.warn(
            f"{module}.{name} is called {new} now; the old name goes in {REMOVAL}",
            DeprecationWarning,
            stacklevel=2,
        )
        return value()

    return module_getattr
