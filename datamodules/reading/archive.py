"""Archives unpacked without trusting them: into a new folder, plain files only, not too many, not too large."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

MAX_FILES = 10_000
MAX_BYTES = 2**31
BLOCK = 2**20
_CLASHES = (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # None: gzip and bz2 raise OSError for damage
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class ArchiveError(ValueError):
    """An archive that is damaged or asks for something that is not allowed; nothing of it was kept."""


def extract(
    archive: Path, folder: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES, inside: str | None = None
) -> Path:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive to a new folder, which appears only when it is complete.

    Args:
        archive: the file; recognized by its content.
        folder: made by this call.
        max_files: files and folders the archive may have.
        max_bytes: of all that is unpacked, headers included; counted while unpacking, whatever the archive says.
        inside: the folder in the archive that becomes ``folder``; None for all of it.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: the folder is there already.
        ArchiveError: naming the entry: a path that is absolute or goes up, a link or device, too many entries, too
            much data, damage.
    """
    if folder.exists():
        raise FileExistsError(f"{folder.absolute()} exists already; remove it to unpack {archive.name} again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        _unpack(archive, temporary, _Limits(archive, max_files, max_bytes))
        made = temporary if inside is None else temporary / inside
        if not made.is_dir():
            raise ArchiveError(f"{archive} holds no folder {inside!r}; bring another copy")
        os.rename(made, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


class _Limits:
    """Counts entries and bytes of one archive."""

    def __init__(self, archive: Path, max_files: int, max_bytes: int) -> None:
        self.archive, self.max_files, self.max_bytes = archive, max_files, max_bytes
        self.files = self.bytes = 0

    def refuse(self, why: str) -> ArchiveError:
        return ArchiveError(f"{self.archive} is refused, nothing was kept: {why}")

    def entry(self, name: str) -> None:
        """Count an entry and look at its path."""
        self.files += 1
        if self.files > self.max_files:
            raise self.refuse(f"it has more than {self.max_files} entries")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
            raise self.refuse(f"the path {name[:80]!r} leads out of the folder")

    def data(self, count: int) -> None:
        """Count bytes."""
        self.bytes += count
        if self.bytes > self.max_bytes:
            raise self.refuse(f"it unpacks to more than {self.max_bytes} bytes")


class _Counted(io.RawIOBase):
    """A stream that is read through the limits, so that nothing is unpacked in memory beyond them either."""

    def __init__(self, stream: Any, limits: _Limits) -> None:
        self.stream, self.limits = stream, limits

    def read(self, size: int = -1) -> bytes:
        block: bytes = self.stream.read(size)
        self.limits.data(len(block))
        return block


def _unpack(archive: Path, folder: Path, limits: _Limits) -> None:
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    try:
        (_unpack_zip if is_zip else _unpack_tar)(archive, folder, limits)
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _CLASHES:
            raise  # of the disk, not of the archive
        why = f"{error or type(error).__name__}; it is damaged or no archive, bring another copy"
        raise limits.refuse(why) from error


@contextmanager
def _plain(archive: Path) -> Iterator[Any]:
    """The archive as a stream without compression."""
    with archive.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        opener: Any = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            yield file
            return
        with opener(file) as stream:
            yield stream


def _unpack_tar(archive: Path, folder: Path, limits: _Limits) -> None:
    with _plain(archive) as stream, tarfile.open(fileobj=_Counted(stream, limits), mode="r|") as tar:
        for member in tar:
            limits.entry(member.name)
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
                raise limits.refuse(f"{member.name[:80]!r} is a link, device or other special entry")
            if limits.bytes + member.size > limits.max_bytes:
                limits.data(member.size)
            tar.extract(member, folder, set_attrs=False, filter="data")


def _unpack_zip(archive: Path, folder: Path, limits: _Limits) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        for member in members:
            limits.entry(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise limits.refuse(f"{member.filename[:80]!r} is a link, device or other special entry")
            if member.flag_bits & 1:
                raise limits.refuse(f"{member.filename[:80]!r} is encrypted")
        if sum(member.file_size for member in members) > limits.max_bytes:
            limits.data(limits.max_bytes + 1)
        for member in members:
            _unpack_zip_member(content, member, folder / member.filename, limits)


def _unpack_zip_member(content: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, limits: _Limits) -> None:
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with content.open(member) as source, target.open("xb") as file:
        while block := source.read(BLOCK):
            limits.data(len(block))
            file.write(block)
