"""Text that needs no download."""

import functools
import hashlib

import numpy as np

from ._base import Dataset, from_arrays


@functools.cache
def python_docs(length: int = 32) -> Dataset:
    """English text that CPython ships (the language reference), as byte windows.

    Windows of `length + 1` bytes without overlap; x is all but the last byte, y all but
    the first; bytes above 127 become `?`, so the vocabulary has 128 entries. The text
    differs between Python versions: see `text_fingerprint`.

    x, y: (n, length) int32. 70 / 10 / 10 / 10 percent.
    """
    return _windows(_python_docs_bytes(), length)


def text_fingerprint() -> str:
    """First 12 digits of the SHA-256 of `python_docs`' text, for reports."""
    return hashlib.sha256(_python_docs_bytes()).hexdigest()[:12]


def _windows(text: bytes, length: int) -> Dataset:
    raw = np.frombuffer(text, np.uint8).astype(np.int32)
    raw = np.where(raw < 128, raw, ord("?"))
    count = len(raw) // (length + 1)
    windows = raw[: count * (length + 1)].reshape(count, length + 1)
    return from_arrays({"x": windows[:, :-1], "y": windows[:, 1:]})


def _python_docs_bytes() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()
