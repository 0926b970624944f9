"""Stored JSON that cannot change unseen: a format, a version, a digest, a schema."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typeguard

from l2o.files import write_json

DIGEST = "digest"
_SEAL = ("format", "version", DIGEST)


def digest_of(content: Mapping[str, Any]) -> str:
    """The SHA-256 of the content but its own digest, whatever the order of its keys."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(kind: str, version: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as `unseal` takes it.

    Args:
      kind: what the file is, such as "l2o evaluation".
      version: of the schema.
      content: what JSON can hold; lists come back for tuples, None for NaN.
    """
    plain = json.loads(json.dumps(content), parse_constant=lambda constant: None)
    sealed = {"format": kind, "version": version, **plain}
    return {**sealed, DIGEST: digest_of(sealed)}


def unseal(content: Any, kind: str, version: int) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
      ValueError: it is of another kind or version, or was altered since.
    """
    if not isinstance(content, dict) or content.get("format") != kind:
        raise ValueError(f'it does not say "format": "{kind}"')
    if content.get("version") != version:
        found = content.get("version")
        raise ValueError(f"it has version {found!r}, this l2o reads {version}")
    if content.get(DIGEST) != digest_of(content):
        raise ValueError("its content does not have the digest that it was given")
    return {key: value for key, value in content.items() if key not in _SEAL}


def read_json(text: str) -> Any:
    """JSON without NaN and infinities, which are null in what l2o writes.

    Raises:
      ValueError: it is none.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it has {constant} where a number or null is expected")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None


@contextlib.contextmanager
def naming(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Refuses a file whose reading fails: names it, the problem and the remedy."""
    try:
        yield
    except UnicodeDecodeError:
        problem = "it is no text"
    except (ValueError, OverflowError) as error:
        problem = str(error)
    else:
        return
    raise ValueError(
        f"{path} is no {kind}, a damaged one, or one of another version ({problem}): "
        f"{remedy}"
    )


def read_sealed(
    path: Path,
    kind: str,
    version: int,
    remedy: str,
    *,
    schema: Any = dict,
    check: Callable[[Any], None] = lambda content: None,
) -> Any:
    """The content of a file of `write_sealed`.

    Args:
      path: of the file.
      kind, version: as `seal` was given.
      remedy: what to do about a file that cannot be read.
      schema: a type, such as a `TypedDict`, of the content.
      check: raises `ValueError` for content that no schema tells from others.

    Raises:
      ValueError: the file is none, or not what was written. It names file and remedy.
    """
    with naming(path, kind, remedy):
        content = unseal(read_json(path.read_text(encoding="utf-8")), kind, version)
        require_type(content, schema)
        check(content)
    return content


def write_sealed(
    path: Path, kind: str, version: int, content: Mapping[str, Any]
) -> None:
    """Replaces a file at once or not at all."""
    write_json(path, seal(kind, version, content))


def require_type(content: Any, schema: Any) -> None:
    """Raises `ValueError` where the content is not of a type, looking at all of it."""
    try:
        typeguard.check_type(
            content,
            schema,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
    except typeguard.TypeCheckError as error:
        raise ValueError(str(error)) from None


def require(condition: bool, problem: str) -> None:
    """Raises `ValueError` with the problem unless the condition holds."""
    if not condition:
        raise ValueError(problem)
