"""Doors: what there is of one kind by name, and how others add to it.

A door opens onto what the package has, what `register` was given, and what installed
distributions announce in an entry-point group. The last is looked up by name and
imported on use, so that a distribution that is broken breaks nothing but its own names.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

from .names import unknown_name

T = TypeVar("T")


class Door(Mapping[str, T], Generic[T]):
    """A read-only mapping of names to things of one kind.

    Args:
      what: the kind, for messages, such as "learned optimizer".
      group: the entry points' group, such as "l2o.optimizers".
      own: what the package has, by name.
      load: from a name and its entry of `own` to the thing; by default the entry is it.
      check: raises `ValueError` or `TypeError` for what is no thing of this kind.

    Example:
      >>> from l2o.doors import Door
      >>> numbers = Door("number", "example.numbers", {"one": 1})
      >>> numbers.register("two", 2)
      >>> list(numbers), numbers["two"]
      (['one', 'two'], 2)
    """

    def __init__(
        self,
        what: str,
        group: str,
        own: Mapping[str, Any],
        *,
        load: Callable[[str, Any], T] = lambda name, thing: thing,
        check: Callable[[Any], None] = lambda thing: None,
    ) -> None:
        self.what, self.group = what, group
        self._own, self._load, self._check = dict(own), load, check
        self._registered: dict[str, T] = {}

    def register(self, name: str, thing: T) -> None:
        """Adds a thing for this process.

        Raises:
          ValueError: the name is taken by another thing.
          TypeError: it is no thing of this kind.
        """
        self._check(thing)
        if self._registered.get(name) is thing:
            return
        if name in self:
            raise ValueError(
                f"the {self.what} {name!r} is there already, from {self.origin(name)}: "
                "take another name"
            )
        self._registered[name] = thing

    def origin(self, name: str) -> str:
        """Where a name comes from: l2o, `register`, or distributions by name."""
        claims = ["l2o"] if name in self._own else []
        claims += ["a call of register"] if name in self._registered else []
        found = _entry_points(self.group).get(name, ())
        return " and ".join([*claims, *(_distribution(x) for x in found)])

    def __getitem__(self, name: str) -> T:
        """The thing of that name.

        Raises:
          KeyError: there is none.
          ValueError: several claim the name, or what an installed distribution
            announces cannot be imported; the message names the distribution.
        """
        installed = _entry_points(self.group).get(name, ())
        inside = name in self._own or name in self._registered
        if inside + len(installed) > 1:
            raise ValueError(
                f"the {self.what} {name!r} is claimed by {self.origin(name)}: "
                "uninstall one of them, or rename it there"
            )
        if installed:
            return self._imported(installed[0])
        if name in self._registered:
            return self._registered[name]
        return self._load(name, self._own[name])

    def _imported(self, point: metadata.EntryPoint) -> T:
        try:
            thing = point.load()
            self._check(thing)
        except Exception as error:  # whatever others wrote
            raise ValueError(
                f"the {self.what} {point.name!r} of the distribution "
                f"{_distribution(point)} cannot be used: {point.value} fails with "
                f"{type(error).__name__}: {error}"
            ) from error
        return thing

    def __iter__(self) -> Iterator[str]:
        """The names, nothing imported."""
        names = [*self._own, *self._registered, *_entry_points(self.group)]
        return iter(dict.fromkeys(names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return (
            name in self._own
            or name in self._registered
            or name in _entry_points(self.group)
        )

    def usable(self) -> dict[str, T]:
        """What can be imported; names that others broke are left out."""
        found = {}
        for name in self:
            if self.problem(name) is None:
                found[name] = self[name]
        return found

    def problem(self, name: str) -> str | None:
        """Why a name of another distribution cannot be used; None if it can."""
        if name not in _entry_points(self.group):
            return None
        try:
            self[name]
        except ValueError as error:
            return str(error)
        return None

    def find(self, name: str, **message: str) -> T:
        """As `door[name]`, with a message for users where there is none.

        Raises:
          ValueError: unknown name, with the near ones; and as `door[name]`.
        """
        if name not in self:
            raise ValueError(unknown_name(self.what, name, self, **message))
        return self[name]


@functools.cache
def _entry_points(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Of a group, by name; of a distribution that is found twice one counts."""
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
        key = (_distribution(point), point.value)
        found.setdefault(point.name, {}).setdefault(key, point)
    return {name: tuple(points.values()) for name, points in found.items()}


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"
