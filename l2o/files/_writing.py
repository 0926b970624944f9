"""What is written: a file at once or not at all, and JSON that every reader takes."""

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def plain(x: Any) -> Any:
    """The same in Python's own types, as JSON has them.

    Arrays and tuples become lists, NamedTuples and mappings dicts, keys texts; numbers
    that are not finite become None.
    """
    if hasattr(x, "_asdict"):
        x = x._asdict()
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(x).tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file at once or not at all, whoever else is writing it."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """As `write_whole`, of what `plain` returns.

    Raises:
      ValueError: it has numbers that are not finite.
    """
    write_whole(path, json_text(content))


def json_text(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
