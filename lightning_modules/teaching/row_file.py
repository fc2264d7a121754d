"""Rows of equal length in one memory-mapped file, each of which says whether it is there and whole."""

from __future__ import annotations

import errno
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

MAGIC, HEADER = b"rows of a teacher, format 1\n", 4096
_MARK = np.dtype("<u4")
_synchronize = getattr(os, "fdatasync", os.fsync)


class RowFile:
    """``[rows, width]`` bytes on disk, made when it is first looked at.

    After a header of one page comes a mark of four bytes for each row: 0 for a row that is not there, else the CRC-32
    of its bytes. A row is flushed to disk before it is marked, and both are written in place: a killed process leaves
    what was marked, and processes that write at once lose nothing of each other's. A row whose bytes are not those
    that were marked is not there. Reading is through the map and writing is not, so that a full disk is an error of the
    system and no signal; the space of all rows is reserved when the file is made.

    Args:
        path: of the file.
        facts: what it holds, as plain data; it stands in the header, and another header is another file.
        rows: how many.
        width: bytes of each.
    """

    def __init__(self, path: Path, facts: dict[str, Any], rows: int, width: int) -> None:
        self.path, self.facts, self.rows, self.width = path, facts, rows, width
        text = MAGIC + json.dumps({**facts, "rows": rows, "width": width}, sort_keys=True).encode() + b"\n"
        if len(text) > HEADER:
            raise ValueError(f"the header of {path} has {len(text)} bytes, and {HEADER} fit; say less in its facts")
        self._header = text.ljust(HEADER, b"\0")
        self._first = -(-(HEADER + rows * _MARK.itemsize) // HEADER) * HEADER
        self._file: IO[bytes] | None = None
        self._marks: Any = None
        self._content: Any = None
        self._told = False

    def __reduce__(self) -> Any:  # a copy opens the file itself
        return RowFile, (self.path, self.facts, self.rows, self.width)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._first + self.rows * self.width

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these rows ``[B]`` are there, and the bytes ``[B, width]`` of all of them (any, of one that is not).

        Raises:
            OSError: there is no file, and none can be made.
        """
        self._open()
        marks = self._marks[rows]  # first: what is marked is written
        found = self._content[rows]
        there = marks != 0
        for i in np.flatnonzero(there):
            there[i] = _mark(found[i]) == marks[i]
        if not self._told and (there != (marks != 0)).any():
            self._told = True
            warnings.warn(f"{self.path} has damaged rows, which are computed again", stacklevel=2)
        return there, found

    def write(self, rows: np.ndarray, content: np.ndarray) -> None:
        """Keep the bytes ``[B, width]`` of these rows; they are marked once they are on the disk.

        Raises:
            OSError: the disk is full, or fails; none of these rows is marked then.
        """
        if not len(rows):
            return
        self._open()
        try:
            for row, line in zip(rows.tolist(), content, strict=True):
                self._put(line.tobytes(), self._first + row * self.width)
            _synchronize(self._descriptor)
            for row, line in zip(rows.tolist(), content, strict=True):
                self._put(np.array(_mark(line), _MARK).tobytes(), HEADER + row * _MARK.itemsize)
        except OSError as error:
            raise self._failure(error) from error

    def filled(self) -> int:
        """How many rows are marked."""
        self._open()
        return int(np.count_nonzero(self._marks))

    @property
    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def _put(self, data: bytes, place: int) -> None:
        if os.pwrite(self._descriptor, data, place) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> None:
        if self._file is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path.with_suffix(".lock")):
                if self.path.exists() and (why := self._fault()):
                    warnings.warn(f"{self.path} is made anew, and its rows are computed again: {why}", stacklevel=3)
                    self.path.unlink()  # a process that still has it open keeps the old one to itself
                if not self.path.exists():
                    self._make()
                file = open(self.path, "r+b", buffering=0)  # noqa: SIM115  # open for as long as the run lasts
        except OSError as error:
            raise self._failure(error) from error
        self._marks = np.memmap(file, _MARK, "r", HEADER, (self.rows,))
        self._content = np.memmap(file, np.uint8, "r", self._first, (self.rows, self.width))
        self._file = file

    def _fault(self) -> str | None:
        """Why a file of this name is not the one that was made here; None where it is."""
        with open(self.path, "rb") as file:
            header = file.read(HEADER)
        if not header.startswith(MAGIC):
            return "it holds no rows of a teacher"
        if header != self._header:
            return "its header is of other rows, or damaged"
        size = self.path.stat().st_size
        return None if size == self.size else f"it has {size} bytes instead of {self.size}"

    def _make(self) -> None:
        part = self.path.with_name(f".{os.getpid()}.part.{self.path.name}")
        try:
            with open(part, "w+b") as file:
                file.write(self._header)
                file.flush()
                _reserve(file.fileno(), self.size)
                os.fsync(file.fileno())
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> OSError:
        reason = error.strerror or str(error)
        return OSError(
            f"the rows of the teacher cannot be kept in {self.path} ({self.size / 1e6:.1f} MB): {reason}; free some "
            "space, choose another teaching.folder, or compute the teacher in every update with teaching=live"
        )


def _mark(row: np.ndarray) -> int:
    return zlib.crc32(row.data) or 1


def _reserve(descriptor: int, size: int) -> None:
    """Zeros up to ``size``, on blocks of their own where the file system can do that."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go when it ends. Where nothing can be locked the last one made stays."""
    with open(path, "a") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
