"""A run's folder: whose it is, under which configuration, and whether it has room."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import l2o
from l2o.files import present_arguments, write_json

from .._config import RESUMING, Config
from ..files._lock import Lock, locked
from ..files._sealed import naming, read_json, require
from ..files._writing import reading, writing
from ._checkpoints import state_bytes, steps

LOCK = "run.lock"  # which is there while a run is at work


def read_config(out: Path) -> dict[str, Any] | None:
    """A run's `config.json`, None without one.

    Raises:
      ValueError: it holds something else.
      OSError: it cannot be read.
    """
    path = out / "config.json"
    with naming(path, "configuration of a run", "restore it, or use another folder"):
        with reading(path):
            if not path.exists():
                return None
            content = read_json(path.read_text(encoding="utf-8"))
        require(isinstance(content, dict), "it is no object")
    return content


def _write_config(out: Path, content: dict[str, Any]) -> None:
    with writing(out / "config.json"):
        write_json(out / "config.json", content)


def check_name(out: Path) -> None:
    """Raises `ValueError` where a folder's name cannot be told, or not to orbax."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{str(out)!r} is not valid UTF-8, as the name of a run's folder has to "
            "be: choose another folder"
        ) from None
    # Orbax would write to another folder: it reads these as a separator and as a URL.
    whole = f"{out.absolute()}{os.sep}"
    for part, word in (("\\", "a backslash"), (f"gs:{os.sep}", "`gs:` at its end")):
        if part in whole and part != os.sep:
            raise ValueError(
                f"{out} cannot hold checkpoints: the name of a folder in {whole} has "
                f"{word}. Choose another folder"
            )


@contextlib.contextmanager
def alone(out: Path, say: Callable[[str], None]) -> Iterator[Lock]:
    """Makes a run's folder and keeps other runs out of it."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    remedy = "Wait for its end, stop it, or choose another folder (--out)"
    with locked(out / LOCK, "another run", remedy, say) as lock:
        yield lock


def _completed(old: dict[str, Any]) -> dict[str, Any]:
    """An older version's, with the defaults of what has been added since."""
    content = {**json.loads(json.dumps(dataclasses.asdict(Config()))), **old}
    try:
        told = present_arguments(content["optimizer"], content["optimizer_options"])
        optimizer = l2o.make(content["optimizer"], **told)
    except (TypeError, ValueError):  # one of the user's own
        return content
    options = json.loads(json.dumps(dict(optimizer.arguments)))
    # Its name may be an older one.
    return {**content, "optimizer": optimizer.name, "optimizer_options": options}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and matter, as (old, new)."""
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new} - {"overrides"})
        if old.get(name) != new.get(name) and RESUMING.get(name) != "free"
    }


def _shown(changes: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items()]


def claim(out: Path, content: dict[str, Any], override: bool) -> dict[str, Any] | None:
    """Writes `config.json`, or holds it against the one that is there.

    Returns the latter where the folder already held this run.
    """
    old = read_config(out)
    if old is None and any(path.name != LOCK for path in out.iterdir()):
        raise ValueError(
            f"{out} is not empty and holds no run: choose a new folder for the output"
        )
    changes = _changes(_completed(old), content) if old is not None else {}
    # One that never came to its first step may be replaced: nothing is lost.
    if old is None or (changes and not (out / "metrics.jsonl").exists()):
        _write_config(out, content)
        return None
    fixed = [name for name in changes if RESUMING.get(name) != "override"]
    if not changes or (override and not fixed):
        return old
    lines = "".join(f"\n  {line}" for line in _shown(changes))
    if fixed:
        remedy = (
            f"{', '.join(fixed)} cannot change in a run, with --override neither: "
            "choose another folder, or the old configuration to resume"
        )
    else:
        remedy = (
            "--override (in Python `override=True`) resumes with the new values; or "
            "choose another folder, or the old configuration"
        )
    raise ValueError(f"{out} holds a run of another configuration:{lines}\n{remedy}")


def record_overrides(
    out: Path,
    content: dict[str, Any],
    old: dict[str, Any] | None,
    step: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rewrites `config.json` where `claim` let changes pass; all overrides so far."""
    if old is None:
        return []
    overrides = old.get("overrides", [])
    changes = _changes(_completed(old), content)
    if changes:
        for line in _shown(changes):
            say(f"from outer step {step} on, {line}")
        overrides = [*overrides, {"step": step, "changes": changes}]
        _write_config(out, {**content, "overrides": overrides})
    return overrides


def check_space(out: Path, state: Any, keep: int) -> None:
    """Raises `OSError` where the checkpoints to come would not fit."""
    # Of those that are there already, the last ones make room for as many.
    count = max(keep + 1 - len(steps(out / "checkpoints")), 1)
    need = count * state_bytes(state) + 2**20
    with reading(out):
        free = shutil.disk_usage(out).free
    if free < need:
        raise OSError(
            f"{out} has {free / 2**20:.1f} MiB free; {count} more checkpoints need "
            f"{need / 2**20:.1f} MiB: make room or lower keep_checkpoints"
        )
