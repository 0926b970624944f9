"""Files that others wrote, read so that every failure names the file."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy

# Cards, configurations and the like are far smaller; what is larger is none.
_TEXT_BYTES = 4 * 2**20


class Malformed(ValueError):
    """What l2o itself has to say about a file, as opposed to a library."""


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns what goes wrong inside into a `ValueError` that begins with the path.

    Sentences of l2o's own are kept. Those of Python and of libraries give way to what
    was `expected`.
    """
    try:
        yield
    except (OSError, ImportError):
        raise  # which name the file, or the package
    except Exception as error:  # such as RecursionError, KeyError, re.error
        if type(error) not in (ValueError, Malformed):
            raise ValueError(
                f"{path} is damaged or holds something else, expected {expected}: copy "
                "it again, or check the arguments that you give with it"
            ) from error
        named = str(path) in str(error)
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def read_text(path: Path) -> str:
    """A short UTF-8 text."""
    size = path.stat().st_size
    if size > _TEXT_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, expected a text of at most {_TEXT_BYTES:,}"
        )
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: write it again") from error


def read_json(path: Path) -> Any:
    """What a short JSON file holds; NaN and infinities are not JSON."""
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON: it holds a number that is not finite or has "
            "too many digits"
        ) from error


def read_safetensors(path: Path, content: bytes | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, finite ones of types that NumPy has."""
    content = path.read_bytes() if content is None else content
    try:
        arrays = safetensors.numpy.load(content)
    except KeyError as error:
        raise ValueError(
            f"{path} holds arrays of type {error}, which NumPy lacks: save them again "
            "as float32"
        ) from error
    except Exception as error:  # the library's own classes, and NumPy's
        raise ValueError(
            f"{path} is truncated or not a safetensors file: copy it again"
        ) from error
    check_numbers(arrays, str(path))
    return arrays


def check_numbers(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raises `ValueError` for arrays that are not real or not finite, by name."""
    for name, x in arrays.items():
        if x.dtype.kind not in "biuf":
            raise ValueError(f"{what}: {name} is of type {x.dtype}, expected numbers")
    bad = [name for name, x in arrays.items() if not np.all(np.isfinite(x))]
    if bad:
        raise ValueError(
            f"{what}: {', '.join(bad[:3])} is NaN or infinite in places: such weights "
            "cannot be used, copy or train them again"
        )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
