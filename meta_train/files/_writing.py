"""What a user is told where a file of a run cannot be read or written."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_MAKE_ROOM = "Make room and run again to resume"
_ELSEWHERE = "or choose another folder"
_PUT_BACK = f"put it back and run again to resume, {_ELSEWHERE}"
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: f"{_MAKE_ROOM}, or ask for a larger quota",
    errno.EFBIG: "Raise the limit of file sizes (`ulimit -f`) and run again to resume",
    errno.EROFS: f"Make its file system writable, {_ELSEWHERE}",
    errno.EACCES: f"Give yourself the permission (`chmod u+rwx`), {_ELSEWHERE}",
    errno.EPERM: f"Give yourself the permission (`chmod u+rwx`), {_ELSEWHERE}",
    errno.ENOTDIR: f"A file lies where a folder is needed: move it, {_ELSEWHERE}",
    errno.EEXIST: f"A file lies where a folder is needed: move it, {_ELSEWHERE}",
    errno.ENOENT: f"The folder is gone: {_PUT_BACK}",
    errno.ESTALE: f"The folder is gone: {_PUT_BACK}",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def reason(error: OSError) -> str:
    """The system's words for it and what to do, as one line."""
    if error.errno is None:
        return str(error)
    # Its number and the file's name are left out; the caller names the file.
    remedy = _REMEDIES.get(error.errno, f"Mend that and run again, {_ELSEWHERE}")
    return f"{os.strerror(error.errno)}. {remedy}"


def system_error(error: BaseException) -> OSError | None:
    """The system's error behind a library's, which may only quote its words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        for number in (*_REMEDIES, errno.EIO):
            if os.strerror(number) in str(cause):
                return OSError(number, os.strerror(number))
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file or folder: an `OSError` that names it and a remedy."""
    with _naming(path, "written"):
        yield


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """As `writing`, around what reads it."""
    with _naming(path, "read"):
        yield


@contextlib.contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it has been told already
            raise
        raise OSError(f"{path} could not be {what}: {reason(error)}") from error
