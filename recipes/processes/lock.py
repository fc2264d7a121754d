"""One run, one directory, one process: a lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recipes.configuration.boundary import begun
from recipes.configuration.problems import ConfigError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

_HELD: dict[str, IO[str]] = {}  # by real path: the system's locks are per process and would let us in twice


class Locked(RuntimeError):
    """Another process is at work in this directory."""


class Lock:
    """The file ``.lock`` of a run directory, locked by the system for as long as the process lives.

    What it says (process, host, since when) is for people, and for machines without such locks. The file stays when
    the lock is given up, or when its process is killed: then the system has let go, and the next one takes it over.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._key = os.path.realpath(self.path)

    def take(self) -> None:
        """Hold the lock.

        Raises:
            Locked: a live process holds it; the message names it.
        """
        if self._key in _HELD:  # no second handle: closing any would give up this process's lock
            raise Locked(f"{self.path.parent} is in use by this process; choose another name=")
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  # open for as long as it is held
        owner = _owner(file)
        if not _lock(file) or (fcntl is None and _alive(owner)):
            file.close()
            raise Locked(
                f"{self.path.parent} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')} since "
                f"{owner.get('since', '?')}; wait for it, or choose another name="
            )
        _write(file, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        _HELD[self._key] = file

    def release(self) -> None:
        """Give the lock up; does nothing where it is not held."""
        file = _HELD.pop(self._key, None)
        if file is not None:
            _write(file, {})
            file.close()

    def live(self) -> bool:
        """Whether a live process holds it."""
        if self._key in _HELD:
            return True
        if not self.path.exists():
            return False
        try:
            self.take()
        except Locked:
            return True
        self.release()
        return False


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory; what is raised inside belongs to the run in it.

    Raises:
        ConfigError: another process is at work there, or it cannot be locked.
    """
    lock = Lock(directory)
    try:
        lock.take()
    except (Locked, OSError) as error:
        raise ConfigError([f"cannot run in {directory}: {error}"]) from error
    try:
        with begun(directory):
            yield
    finally:
        lock.release()


def _owner(file: IO[str]) -> dict[str, object]:
    """What the file says; empty where it says nothing."""
    file.seek(0)
    try:
        content = json.loads(file.read(10_000))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: IO[str], content: dict[str, object]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(content, file)
    file.flush()


def _lock(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by loader processes, released at any death
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        return not _alive(_owner(file))  # a file system without locks: what the file says has to do
    return True


def _alive(owner: dict[str, object]) -> bool:
    pid = owner.get("pid")
    if not isinstance(pid, int) or owner.get("host") != socket.gethostname() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
