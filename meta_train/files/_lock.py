"""One writer at a time in a folder: a lock that ends with its process.

The kernel holds the lock, so that it ends with the process that took it, killed or not.
Some shared file systems do not tell one machine of another's locks. So the file also
says whose it is, and its owner changes a number in it every few seconds: who finds the
file of another machine waits whether the number changes. Only durations are measured.
"""

import contextlib
import dataclasses
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ._writing import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BEAT = 5.0  # seconds between two changes of the number
_PATIENCE = 30.0  # seconds without one after which a machine's process counts as gone
_SIZE = 1024  # bytes, always the same: a full disk does not hinder a rewrite


@dataclasses.dataclass(frozen=True)
class _Owner:
    host: str
    kernel: str  # of this boot; where no system tells, the host's name
    pid: int
    born: str | None  # by which a process is told from a later one of the same pid
    started: str  # for people to read; nothing depends on it

    @staticmethod
    def this() -> "_Owner":
        return _Owner(
            platform.node(),
            _kernel(),
            os.getpid(),
            _born(os.getpid()),
            datetime.now().astimezone().isoformat(" ", "seconds"),
        )

    def is_gone(self) -> bool | None:
        """Whether the process is, where one may know from here."""
        if (self.host, self.kernel) != (platform.node(), _kernel()):
            return None
        return None if self.born is None else _born(self.pid) != self.born


class Lock:
    """A lock that is held; made by `locked`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._owner = _Owner.this()
        self._ended = threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def mark(self) -> str:
        """By which others know the file of this lock."""
        return repr(self._owner)

    def check(self) -> None:
        """Raises `OSError` where the file is no longer this lock's."""
        if not _is_at(self._descriptor, self._path):
            raise OSError(
                f"{self._path} was deleted or replaced while this process wrote to "
                f"{self._path.parent}, so it stops here. If the folder was moved, put "
                "it back and run again to resume. If another run has taken over, "
                "nothing is left to do"
            )

    def release(self) -> None:
        """Gives it up; what the file says goes with it."""
        self._ended.set()
        self._thread.join()
        if _is_at(self._descriptor, self._path):
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(_BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # what else cannot be written tells
                self._write(beat)

    def _write(self, beat: int) -> None:
        text = json.dumps({**dataclasses.asdict(self._owner), "beat": beat})
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, text.encode().ljust(_SIZE - 1) + b"\n")


@contextlib.contextmanager
def locked(
    path: Path, use: str, remedy: str, say: Callable[[str], None]
) -> Iterator[Lock]:
    """Holds a lock, in a file that is there meanwhile.

    Args:
      path: of the file; its folder exists.
      use: what others are told that the folder is used by, such as "a run".
      remedy: what to do instead, for them.
      say: called with a sentence before a long wait.

    Raises:
      OSError: another process holds it, or the file cannot be written.
    """
    with writing(path.parent):
        lock = _take(path, use, remedy, say)
    try:
        yield lock
    finally:
        lock.release()


def shows(path: Path, mark: str) -> bool:
    """Whether the file at `path`, seen from here, is of the lock with this mark."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return repr(_owner(descriptor)) == mark
    finally:
        os.close(descriptor)


def _take(path: Path, use: str, remedy: str, say: Callable[[str], None]) -> Lock:
    with contextlib.ExitStack() as opened:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            opened.callback(os.close, descriptor)
            free = _try(descriptor)
            if free is False or _is_at(descriptor, path):
                break
            opened.close()  # its owner ended just now
        owner = _owner(descriptor)
        if free is False and owner is None:
            time.sleep(0.5)  # it may be about to say who it is
            owner = _owner(descriptor)
        if free is False or (owner and _lives(path, owner, free, descriptor, say)):
            raise OSError(_told(path, owner, use, remedy))
        lock = Lock(path, descriptor)
        opened.pop_all()
        return lock


def _try(descriptor: int) -> bool | None:
    """Takes the kernel's lock: whether it was free; None where there is none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # file systems without
        return None
    return True


def _lives(
    path: Path,
    owner: _Owner,
    free: bool | None,
    descriptor: int,
    say: Callable[[str], None],
) -> bool:
    """Whether the one that the file names still runs."""
    here = owner.kernel == _kernel()
    if free and here:
        return False  # the kernel has given its lock back
    gone = owner.is_gone()
    if gone is not None:
        return not gone
    say(
        f"{path} says that {_name(owner)} uses this folder: watching for "
        f"{_PATIENCE:.0f} s whether it still runs"
    )
    before = _content(descriptor)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, _PATIENCE / 10))
        if _content(descriptor) != before:
            return True
    return False


def _told(path: Path, owner: _Owner | None, use: str, remedy: str) -> str:
    who = "another process" if owner is None else _name(owner)
    text = f"{path.parent} is in use by {use}: {who}. {remedy}"
    if owner is None or owner.kernel == _kernel():
        return text
    return f"{text}. If that process is gone, delete {path} and try again"


def _name(owner: _Owner) -> str:
    return f"process {owner.pid} on {owner.host}, started {owner.started}"


def _owner(descriptor: int) -> _Owner | None:
    try:
        content: dict[str, Any] = json.loads(_content(descriptor))
        del content["beat"]
        return _Owner(**content)
    except (ValueError, TypeError, KeyError):
        return None


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, _SIZE)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _kernel() -> str:
    # Containers of one machine have names of their own and one kernel, which locks.
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # the name before may have spaces
