"""Archives that try something: refused, with nothing left in or outside the target."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.reading.archive import ArchiveError, extract

pytestmark = pytest.mark.fault


def tar(path: Path, members: list[tuple[str, bytes, dict[str, Any]]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content, facts in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in facts.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path: Path, members: list[tuple[str, bytes, int]], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content, mode in members:
            member = zipfile.ZipInfo(name)
            member.external_attr, member.compress_type = mode << 16, compression
            archive.writestr(member, content)
    return path


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


GOOD: list[tuple[str, bytes, dict[str, Any]]] = [
    ("set/a.txt", b"one", {}),
    ("set/deep/b.txt", b"two", {"mode": 0o4777}),
    ("set/empty", b"", {"type": tarfile.DIRTYPE}),
]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar(tmp_path: Path, mode: str) -> None:
    archive = tar(tmp_path / "x.bin", GOOD, mode)
    folder = extract(archive, tmp_path / "all")
    assert (folder / "set/a.txt").read_bytes() == b"one" and (folder / "set/empty").is_dir()
    inner = extract(archive, tmp_path / "sub" / "set", inside="set")
    assert (inner / "deep/b.txt").read_bytes() == b"two" and not (inner / "deep/b.txt").stat().st_mode & stat.S_ISUID
    assert left(tmp_path) == {"x.bin", "all", "sub"} and left(tmp_path / "sub") == {"set"}


def test_zip(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", [("set/a.txt", b"one", 0o644), ("set/", b"", 0o40755), ("set/d/b", b"two", 0)])
    assert (extract(archive, tmp_path / "new", inside="set") / "d" / "b").read_bytes() == b"two"
    assert left(tmp_path) == {"x.zip", "new"}


def sparse(folder: Path) -> Path:
    """A tar member of 1 TB, stored in nothing."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**12)}
    member = tarfile.TarInfo("x")
    member.pax_headers, member.size = {**headers, "GNU.sparse.name": "x"}, 512
    with tarfile.open(folder / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
    return folder / "sparse.tar"


def header_bomb(folder: Path) -> Path:
    """A gzip of 100 MB of zeros that a tar reader would take for one long file name."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 10**8
    with gzip.open(folder / "header.tgz", "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(100):
            file.write(bytes(10**6))
    return folder / "header.tgz"


def nested_zip_in_tar(folder: Path) -> Path:
    """A tar that ends like a zip is still read as the tar it starts as."""
    inner = zipped(folder / "inner.zip", [("../outside", b"x", 0)]).read_bytes()
    tar(folder / "x.tar", [("../outside", b"x", {}), ("inner.zip", inner, {})])
    return folder / "x.tar"


def link(kind: bytes, target: str) -> Callable[[Path], Path]:
    return lambda folder: tar(folder / "x.tar", [("link", b"", {"type": kind, "linkname": target})])


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar ..": (lambda f: tar(f / "x.tar", [("a", b"x", {}), ("b/../../outside", b"x", {})]), "leads out of the folder"),
    "tar absolute": (lambda f: tar(f / "x.tar", [(f"{f}/outside", b"x", {})]), "leads out of the folder"),
    "tar symlink": (link(tarfile.SYMTYPE, "../../outside"), "is a link, device or other"),
    "tar symlink inside": (link(tarfile.SYMTYPE, "a"), "is a link, device or other"),
    "tar hard link": (link(tarfile.LNKTYPE, "/etc/passwd"), "is a link, device or other"),
    "tar device": (link(tarfile.CHRTYPE, ""), "is a link, device or other"),
    "tar fifo": (link(tarfile.FIFOTYPE, ""), "is a link, device or other"),
    "tar sparse": (sparse, "is a link, device or other"),
    "tar of many": (lambda f: tar(f / "x.tar", [(f"{i}", b"", {}) for i in range(101)]), "more than 100 entries"),
    "tar bomb": (lambda f: tar(f / "x.tgz", [("x", bytes(2_000_000), {})], "w:gz"), "more than 1000000 bytes"),
    "tar of headers": (header_bomb, "more than 1000000 bytes"),
    "tar file as folder": (
        lambda f: tar(f / "x.tar", [("a", b"x", {}), ("a/b", b"x", {})]),
        "Not a directory|File exists",
    ),
    "tar like zip": (nested_zip_in_tar, "'../outside' leads out of the folder"),
    "zip ..": (lambda f: zipped(f / "x.zip", [("a", b"x", 0), ("../outside", b"x", 0)]), "leads out of the folder"),
    "zip absolute": (lambda f: zipped(f / "x.zip", [(f"{f}/outside", b"x", 0)]), "leads out of the folder"),
    "zip drive": (lambda f: zipped(f / "x.zip", [("C:/outside", b"x", 0)]), "leads out of the folder"),
    "zip symlink": (
        lambda f: zipped(f / "x.zip", [("link", b"/etc/passwd", stat.S_IFLNK | 0o777)]),
        "is a link, device or other",
    ),
    "zip of 10^5": (
        lambda f: zipped(f / "x.zip", [(f"{i}", b"", 0) for i in range(100_000)], 0),
        "more than 100 entries",
    ),
    "zip bomb": (lambda f: zipped(f / "x.zip", [("x", bytes(2_000_000), 0)]), "more than 1000000 bytes"),
    "zip twice": (lambda f: zipped(f / "x.zip", [("x", b"1", 0), ("x", b"2", 0)]), "File exists"),
    "zip damaged": (lambda f: damaged(zipped(f / "x.zip", [("x", os.urandom(5000), 0)], 0), 100), "Bad CRC-32"),
    "zip cut": (lambda f: cut(zipped(f / "x.zip", [("x", os.urandom(5000), 0)])), "damaged or no archive"),
    "tar cut": (lambda f: cut(tar(f / "x.tgz", [("x", os.urandom(5000), {})], "w:gz")), "damaged or no archive"),
    "tar damaged": (lambda f: damaged(tar(f / "x.tgz", [("x", bytes(5000), {})], "w:gz"), 30), "damaged or no archive"),
    "web page": (lambda f: text(f / "x.tgz", b"<html>not found</html>"), "damaged or no archive"),
    "empty": (lambda f: text(f / "x.tgz", b""), "damaged or no archive"),
}


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    return text(path, path.read_bytes()[:-60])


def damaged(path: Path, at: int) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    return text(path, bytes(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", FAULTS)
def test_refused_and_nothing_kept(tmp_path: Path, case: str) -> None:
    make, message = FAULTS[case]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    archive = make(source)
    before = left(source)
    with pytest.raises(ArchiveError, match=message):
        extract(archive, target / "set", max_files=100, max_bytes=1_000_000)
    assert left(target) == set() and left(source) == before and left(tmp_path) == {"source", "target"}


def test_declared_size_that_lies(tmp_path: Path) -> None:
    """The central directory of the zip says 10 bytes; the stream holds 2 MB."""
    archive = zipped(tmp_path / "x.zip", [("x", bytes(2_000_000), 0)])
    content = archive.read_bytes().replace((2_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="Bad CRC-32"):
        extract(archive, tmp_path / "set", max_bytes=1_000_000)
    assert left(tmp_path) == {"x.zip"}


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar", GOOD)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").touch()
    with pytest.raises(FileExistsError, match="set exists already; remove it to unpack x.tar again"):
        extract(archive, tmp_path / "set")
    assert left(tmp_path) == {"x.tar", "set"} and left(tmp_path / "set") == {"mine"}
    with pytest.raises(ArchiveError, match="holds no folder 'other'"):
        extract(archive, tmp_path / "new", inside="other")
    assert left(tmp_path) == {"x.tar", "set"}


def test_errors_of_the_disk_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **keys: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(OSError, match="No space left"):
        extract(tar(tmp_path / "x.tar", GOOD), tmp_path / "new")
    assert left(tmp_path) == {"x.tar"}
