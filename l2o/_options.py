"""How factories are called: shared options, and names that arguments once had."""

import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from .names import REMOVAL, close_names, unknown_name

P = ParamSpec("P")
R = TypeVar("R")

# Replaces an old argument: changes the other arguments, by the old one's value.
Move = Callable[[dict[str, Any], Any], None]


def takes(
    defaults: Mapping[str, Any] | None = None,
    *,
    old: Mapping[str, str | Move] = {},
    absent: Mapping[str, Any] = {},
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a factory whose last parameter is `**options: Unpack[Options]`.

    The factory gets every option. One that is not given has its default, which is the
    architecture's own.

    Args:
      defaults: of all options. None for a factory that has none.
      old: names that arguments had, each with the present name or with a function that
        replaces it. They work, and warn.
      absent: what a file means that lacks an argument, where that is not the default:
        it was written before there was such an argument.
    """
    shared = dict(defaults or {})

    def decorate(factory: Callable[P, R]) -> Callable[P, R]:
        own = [
            name
            for name, x in inspect.signature(factory).parameters.items()
            if x.kind is not x.VAR_KEYWORD
        ]
        known = [*own, *shared]

        @functools.wraps(factory)
        def made(*args: P.args, **kwargs: P.kwargs) -> R:
            given: Any = kwargs
            if not old.keys().isdisjoint(given):
                _warn(factory.__name__, sorted(old.keys() & given.keys()), old)
                given = translated(made, given)
            unknown = sorted(given.keys() - set(known))
            if unknown:
                raise TypeError(_unexpected(factory.__name__, unknown[0], known))
            return factory(*args, **{**shared, **given})

        vars(made).update(
            option_defaults=shared, old_arguments=old, absent_arguments=absent
        )
        return made

    return decorate


def translated(
    factory: Callable[..., Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments by their present names.

    Raises:
      ValueError: an argument is given by its old name and by its present one.
    """
    result = dict(arguments)
    for name, move in old_names_of(factory).items():
        if name not in result:
            continue
        value = result.pop(name)
        if callable(move):
            move(result, value)
        elif move in result:
            raise ValueError(
                f"{factory.__name__} got {move} and {name}, its old name: leave out one"
            )
        else:
            result[move] = value
    return result


def defaults_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Every argument that a factory takes, shared options too, with its default.

    Those that must be given have `inspect.Parameter.empty`.

    Example:
      >>> import l2o
      >>> l2o.defaults_of(l2o.celo2_base)["hidden_size"]
      8
    """
    parameters = inspect.signature(factory).parameters.values()
    own = {x.name: x.default for x in parameters if x.kind is not x.VAR_KEYWORD}
    return {**own, **getattr(factory, "option_defaults", {})}


def old_names_of(factory: Callable[..., Any]) -> Mapping[str, str | Move]:
    """The names that a factory's arguments had; see `takes`."""
    return getattr(factory, "old_arguments", {})


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of the arguments of `defaults_of`."""
    hints = typing.get_type_hints(factory)
    result = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in hints:
            continue  # of a stranger's
        if parameter.kind is not parameter.VAR_KEYWORD:
            result[name] = hints[name]
        elif typing.get_origin(hints[name]) is typing.Unpack:
            (options,) = typing.get_args(hints[name])
            result |= typing.get_type_hints(options)
    return result


def check_published(published: Sequence[str], known: Sequence[str]) -> None:
    """Raises `ValueError` for a defect that the architecture's published code lacks."""
    for name in published:
        if name not in known:
            raise ValueError(unknown_name("defect in published", name, known))


def _warn(name: str, given: list[str], old: Mapping[str, str | Move]) -> None:
    new = [
        f"{x} is {getattr(old[x], '__doc__', '') if callable(old[x]) else old[x]}"
        for x in given
    ]
    warnings.warn(
        f"arguments of {name} have other names now: {', '.join(new)}; the old ones go "
        f"in {REMOVAL}",
        DeprecationWarning,
        stacklevel=3,
    )


def _unexpected(name: str, given: str, known: list[str]) -> str:
    message = f"{name}() got an unexpected keyword argument {given!r}"
    close = close_names(given, known)
    if close:
        message += f". Did you mean {' or '.join(map(repr, close))}?"
    return message
