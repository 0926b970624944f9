"""Arguments that a file claims: held against its weights before anything is built."""

import copy
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .._base import LearnedOptimizer
from .._options import hints_of
from .._registry import find_factory, is_known
from ._reading import Malformed

# Wrappers in wrappers.
_DEPTH = 16
# Of lists and of numbers that are no size of an array, such as iterations.
_SMALL = 1000
_CHARACTERS = 10_000
# Of a network; each takes time to trace.
_LAYERS = 256
# Whole numbers that nothing is built of.
_FREE = ("seed", "max_steps")


class Extent(NamedTuple):
    """How large weights are.

    Attributes:
      leaves: number of arrays.
      largest: the largest dimension of any that is not empty.
    """

    leaves: int
    largest: int


def extent(shapes: Sequence[tuple[int, ...]]) -> Extent:
    """The extent of arrays of these shapes."""
    sizes = [size for shape in shapes if math.prod(shape) for size in shape]
    return Extent(len(shapes), max(sizes, default=1))


def with_changes(
    recorded: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Recorded arguments with others: each where it is recorded, see `holder_of`."""
    result = copy.deepcopy(dict(recorded))
    for name, value in changes.items():
        (holder_of(result, name) or result)[name] = value
    return result


def holder_of(recorded: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The arguments, of an optimizer or of one it wraps, that have one of that name."""
    if name in recorded:
        return recorded
    wrapped = (x["arguments"] for x in recorded.values() if _is_wrapped(x))
    found = (holder_of(arguments, name) for arguments in wrapped)
    return next((x for x in found if x is not None), None)


def check_recorded(
    name: Any, arguments: Mapping[str, Any], found: Extent, depth: int = _DEPTH
) -> None:
    """Raises `ValueError` for arguments that cannot belong to weights of that extent.

    Names that the factory does not know are left to `make`, which lists the known ones.
    """
    if depth == 0:
        raise Malformed(f"more than {_DEPTH} optimizers are wrapped in each other")
    if not isinstance(name, str):
        raise Malformed(f"an optimizer's name is {_short(name)}, expected a text")
    hints = hints_of(find_factory(name)) if is_known(name) else {}
    for key in arguments.keys() & hints.keys():
        value, hint = arguments[key], hints[key]
        if not _fits(value, hint):
            raise Malformed(
                f"{name} has an ill-typed argument: {key} is {_short(value)}, expected "
                f"{_readable(hint)}"
            )
        if _is_wrapped(value):
            check_recorded(value["name"], value["arguments"], found, depth - 1)
        elif key not in _FREE:
            _check_size(f"{key} of {name}", key, value, found)


def _check_size(what: str, key: str, value: Any, found: Extent) -> None:
    limit = max(found.largest, _SMALL)
    most = min(found.leaves, _LAYERS) if key.endswith("layers") else limit
    if isinstance(value, int) and not 0 <= value <= most:
        raise Malformed(
            f"{what} is {_short(value)}, but the weights are {found.leaves} arrays "
            f"with dimensions up to {found.largest}: expected at most {most}"
        )
    if isinstance(value, str) and len(value) > _CHARACTERS:
        raise Malformed(f"{what} is a text of {len(value):,} characters")
    if isinstance(value, list | tuple):
        if len(value) > limit:
            raise Malformed(f"{what} is a list of {len(value):,} values")
        for x in value:
            _check_size(what, key, x, found)


def _is_wrapped(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"name", "arguments"}:
        return False
    return isinstance(value["arguments"], Mapping)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as JSON has it, is of a factory's annotated type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(x) and value == x for x in parts)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        whole = isinstance(value, list | tuple)
        return whole and all(_fits(x, parts[0]) for x in value)
    if hint is LearnedOptimizer:
        return _is_wrapped(value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and _is_finite(value)
    return isinstance(hint, type) and isinstance(value, hint)


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    return text.replace("typing.", "").replace("collections.abc.", "")


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; True and False are none."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."
