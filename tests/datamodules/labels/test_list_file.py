"""Lists that come with image sets: rows as columns, and the line of everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.labels.list_file import read_list

pytestmark = pytest.mark.fault


def read(tmp_path: Path, text: str | bytes, **keys: Any) -> Any:
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_list(path, ("path", "class"), **keys)


@pytest.mark.parametrize("text", ["a/1.jpg 3\nb 4\n", "a/1.jpg  3\r\n\r\nb\t4", "\ufeffa/1.jpg 3\n\n\n b 4 \n"])
def test_rows(tmp_path: Path, text: str) -> None:
    table = read(tmp_path, text)
    assert table.columns == {"path": ["a/1.jpg", "b"], "class": ["3", "4"]} and len(table) == 2
    assert table.integers("class") == [3, 4] and table.lines[0] == 1
    rows = table.images("path", "class", below="images/")
    assert rows.paths == ["images/a/1.jpg", "images/b"] and rows.labels == ["3", "4"]


def test_header_count_and_commas(tmp_path: Path) -> None:
    table = read(tmp_path, "2\npath  class\na 1\nb 2\n", header=True, counted=True)
    assert table.columns["path"] == ["a", "b"] and table.lines == [3, 4]
    assert read(tmp_path, "a b.jpg, 3\n", separator=",").columns == {"path": ["a b.jpg"], "class": ["3"]}


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("", {}, "has no rows"),
        ("", {"header": True}, "is empty; expected 'path class' in its first lines"),
        ("a 1\nb\n", {}, "line 2: 1 cells, expected 2: path, class"),
        ("a 1\nb c 2\n", {}, "line 2: 3 cells, expected 2"),
        ("a,\n", {"separator": ","}, "line 1: 2 cells, expected 2"),
        ("name class\na 1\n", {"header": True}, "the header is 'name class', expected 'path class'"),
        ("3\na 1\nb 2\n", {"counted": True}, "says that it has 3 rows and has 2"),
        ("many\na 1\n", {"counted": True}, "says that it has many rows and has 1"),
        (b"a 1\nb\xff 2\n", {}, "line 2: not UTF-8"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str | bytes, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, **keys)


@pytest.mark.parametrize("cell", ["-1", "1.0", "x", "1234567890", "²"])
def test_no_number(tmp_path: Path, cell: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: class is '{cell}', expected a number"):
        read(tmp_path, f"a 1\nb {cell}\n").integers("class")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../b", "leaves data.root"),
        ("/etc/b", "is absolute"),
        ("a/../../b", "leaves data.root"),
        ("./b", "has a shorter spelling; write 'b'"),
        ("C:b", "is absolute"),
        ("x\\b", "has a backslash"),
        ("a", "'a' stands already on line 1; keep one of them"),
    ],
)
def test_wrong_paths(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, f"a 1\n{path} 2\n").images("path", "class")
    assert "line 2" in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file .*list.txt; it comes with the images"):
        read_list(tmp_path / "list.txt", ("path",))
