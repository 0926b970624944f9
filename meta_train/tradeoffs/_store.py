"""Measurements on disk: one file each, named by a hash of what it depends on."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation._runs import origin
from ..evaluation._store import _plain, key_of

VERSION = 1  # of what is measured and how; two are not to be mixed


class Measurements:
    """Values by setting, in a folder that is made when the first comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, setting: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured under a setting, or None.

        Raises:
          ValueError: the file holds something else, or is of another version.
        """
        path = self._path(setting)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            version, known = content["setting"]["version"], content["setting"]
            values = dict(content["values"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no measurement of l2o, or a damaged one ({error}): delete "
                "it, and the study makes it again"
            ) from error
        if version != VERSION:
            raise ValueError(
                f"{path} has version {version}, this l2o reads {VERSION}: delete it, "
                "and the study makes it again"
            )
        if key_of(known) != path.stem:
            raise ValueError(
                f"{path} holds the measurement of another setting than its name says: "
                "delete it, and the study makes it again"
            )
        return values

    def put(self, setting: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Writes them; a file is there as a whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"setting": setting, "values": _plain(values), "origin": origin()}
        write_whole(self._path(setting), json.dumps(content, indent=1) + "\n")

    def _path(self, setting: Mapping[str, Any]) -> Path:
        return self._folder / f"{key_of(setting)}.json"


def write_whole(path: Path, text: str) -> None:
    """Replaces a file at once or not at all."""
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
