"""Text that needs no download: what CPython brings along."""

import functools
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from l2o.names import check_known

from ._base import SHUFFLE_SEED, SPLITS, Dataset, from_arrays, on_device
from ._tokens import windows, word_pieces

# Modules that every CPython has; together 1.3 megabytes.
MODULES = (
    *("_pydecimal", "argparse", "ast", "difflib", "enum", "fractions", "ipaddress"),
    *("locale", "mailbox", "optparse", "pickle", "platform", "random", "smtplib"),
    *("socket", "statistics", "subprocess", "threading", "traceback", "typing"),
)


@functools.cache
def python_docs(length: int = 32, vocabulary: int | None = None) -> Dataset:
    """English text that CPython ships (the language reference), in windows.

    Windows of `length + 1` tokens without overlap; x is all but the last token, y all
    but the first. The text differs between Python versions: see `text_fingerprint`.

    x, y: (n, length) int32. 70 / 10 / 10 / 10 percent.

    Args:
      length: tokens of an example.
      vocabulary: None for bytes, of which those above 127 become `?`, so that there are
        128. Else so many word pieces at most, learned from the training split, and the
        splits are four contiguous parts of the text; see `word_pieces`.
    """
    if vocabulary is not None:
        return _in_parts([python_docs_bytes()], length, vocabulary)
    return from_arrays(windows(_ascii(python_docs_bytes()), length))


@functools.cache
def python_code(length: int = 32, vocabulary: int | None = None) -> Dataset:
    """Python code that CPython ships: modules of its standard library, in windows.

    As `python_docs`; every module is cut in four contiguous parts, one for each split.

    x, y: (n, length) int32. 70 / 10 / 10 / 10 percent.

    Args:
      length: tokens of an example.
      vocabulary: as in `python_docs`.
    """
    return _in_parts(python_code_bytes(), length, vocabulary)


@functools.cache
def python_library(length: int = 32, vocabulary: int | None = None) -> Dataset:
    """Python code that CPython ships: the modules that `python_code` does not have.

    All of the standard library's files of one module, without its packages: 146 of
    CPython 3.11, 3.2 megabytes. As `python_code` otherwise.

    x, y: (n, length) int32. 70 / 10 / 10 / 10 percent.

    Args:
      length: tokens of an example.
      vocabulary: as in `python_docs`.
    """
    return _in_parts(python_library_bytes(), length, vocabulary)


def text_fingerprint(name: str = "python_docs") -> str:
    """First 12 digits of the SHA-256 of a dataset's text, for reports.

    Args:
      name: "python_docs", "python_code" or "python_library".

    Raises:
      ValueError: another name.
    """
    texts: dict[str, Callable[[], bytes]] = {
        "python_docs": lambda: python_docs_bytes(),
        "python_code": lambda: b"\n\n".join(python_code_bytes()),
        "python_library": lambda: b"\n\n".join(python_library_bytes()),
    }
    check_known("text", name, texts)
    return hashlib.sha256(texts[name]()).hexdigest()[:12]


def _in_parts(
    documents: Sequence[bytes], length: int, vocabulary: int | None
) -> Dataset:
    """Every document cut at 70, 80 and 90 percent, and the parts joined."""
    cuts = [
        [len(text) * percent // 100 for percent in (0, 70, 80, 90, 100)]
        for text in documents
    ]
    texts = {
        split: b"\n\n".join(
            text[at[i] : at[i + 1]] for text, at in zip(documents, cuts, strict=True)
        )
        for i, split in enumerate(SPLITS)
    }
    if vocabulary is None:
        tokens = {split: _ascii(text) for split, text in texts.items()}
    else:
        # A character of several bytes may have been cut.
        strings = {s: text.decode(errors="replace") for s, text in texts.items()}
        encode = word_pieces([strings["train"]], vocabulary)
        tokens = {split: encode([text])[0] for split, text in strings.items()}
    rng = np.random.default_rng(SHUFFLE_SEED)
    arrays = {}
    for split in SPLITS:
        cut = windows(tokens[split], length)
        order = rng.permutation(len(cut["x"]))
        arrays[split] = {name: x[order] for name, x in cut.items()}
    return on_device(Dataset(**arrays))


def _ascii(text: bytes) -> np.ndarray:
    raw = np.frombuffer(text, np.uint8).astype(np.int32)
    return np.where(raw < 128, raw, ord("?"))


def python_docs_bytes() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def python_code_bytes() -> list[bytes]:
    """The modules' source; found, not imported."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [(folder / f"{name}.py").read_bytes() for name in MODULES]


def python_library_bytes() -> list[bytes]:
    """The modules' source, in the order of their names; found, not imported."""
    folder = Path(sysconfig.get_path("stdlib"))
    # Listed by Python itself: a folder may hold modules of the machine's own, too.
    names = sorted(sys.stdlib_module_names - set(MODULES))
    files = (folder / f"{name}.py" for name in names)
    return [file.read_bytes() for file in files if file.exists()]
