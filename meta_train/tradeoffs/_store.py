"""Measurements on disk: one file each, named by a hash of what it depends on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..evaluation._runs import origin
from ..evaluation._store import key_of, rounded
from ..files._sealed import naming, read_sealed, require, write_sealed

VERSION = 1  # of what is measured and how; two are not to be mixed
_FORMAT, _SCHEMA = "l2o measurement", 1
_REMEDY = "delete it, and `l2o tradeoffs` makes it again"


class _Content(TypedDict):
    setting: dict[str, Any]
    values: dict[str, Any]
    origin: dict[str, str]


class Measurements:
    """Values by setting, in a folder that is made when the first comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, setting: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured under a setting, or None.

        Raises:
          ValueError: the file holds something else, was altered, or is of another
            version.
        """
        path = self._path(setting)
        if not path.exists():
            return None
        content = read_sealed(path, _FORMAT, _SCHEMA, _REMEDY, schema=_Content)
        with naming(path, _FORMAT, _REMEDY):
            found = content["setting"].get("version")
            known = f"it has version {found!r}, this l2o reads {VERSION}"
            require(found == VERSION, known)
            expected = "it holds the measurement of another setting than its name says"
            require(key_of(content["setting"]) == path.stem, expected)
        return content["values"]

    def put(self, setting: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Writes them; a file is there as a whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"setting": setting, "values": rounded(values), "origin": origin()}
        write_sealed(self._path(setting), _FORMAT, _SCHEMA, content)

    def _path(self, setting: Mapping[str, Any]) -> Path:
        return self._folder / f"{key_of(setting)}.json"
