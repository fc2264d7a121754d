"""Label files to rows, without trusting them: csv or json, every complaint with its line, no path out of the folder."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

COLUMNS = ("path", "label")
MAX_PATH_BYTES = 1024  # well below the 4096 of Linux, which the root shares
MAX_NAME_BYTES = 255  # of most file systems
MAX_LABEL_CHARACTERS = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The rows of a label file, as columns.

    Attributes:
        path: of the file.
        unit: what ``lines`` counts: ``line`` of a csv file, ``entry`` of a json list.
        paths: as they stand in the file; checked, relative, with ``/``.
        labels: as they stand in the file; json may hold integers.
        lines: where each row stands, from 1.
    """

    path: Path
    unit: str
    paths: list[str]
    labels: list[str | int]
    lines: list[int]

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def refuse(self, row: int, why: str) -> NoReturn:
        """Raise ValueError naming the line of a row."""
        raise ValueError(f"{self.where(row)}: {why}")


def read_rows(path: Path) -> LabelFile:
    """Rows ``path,label`` of a csv file with that header, or a json list of objects with these keys.

    UTF-8, with or without BOM; any line ends; further columns are left alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming file and line: no header, a missing or empty cell, a path that is absolute, goes up, is
            longer than allowed, has control characters or several spellings, or stands there twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no label file {path.absolute()}; expected a csv or json file with path and label")
    unit, read = {".csv": ("line", _csv_rows), ".json": ("entry", _json_rows)}.get(path.suffix.lower(), ("", None))
    if read is None:
        raise ValueError(f"{path} is neither .csv nor .json; label files are one of these")
    rows = LabelFile(path, unit, [], [], [])
    seen: dict[str, int] = {}
    for line, name, label in read(path, text_of(path)):
        rows.paths.append(name)
        rows.labels.append(label)
        rows.lines.append(line)
        row = len(rows.paths) - 1
        if (wrong := wrong_path(name)) or (wrong := _wrong_label(label)):
            rows.refuse(row, wrong)
        if seen.setdefault(name, row) != row:
            rows.refuse(row, f"{name!r} stands already on {unit} {rows.lines[seen[name]]}; keep one of them")
    if not rows.paths:
        raise ValueError(f"{path} has no rows; expected one for each image")
    return rows


def text_of(path: Path) -> str:
    """The text of a file in UTF-8, with or without BOM; ValueError naming the line that is not."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 0
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in COLUMNS:
            if header.count(name) != 1:
                raise ValueError(
                    f"{path}, line 1: the header is {','.join(header)!r}; it must name path and label once"
                )
        path_column, label_column = (header.index(name) for name in COLUMNS)
        line = reader.line_num
        for row in reader:
            before, line = line, reader.line_num
            if line != before + 1:
                raise ValueError(f"{path}, line {before + 1}: a quote that is opened here is not closed on its line")
            if not row:
                continue  # an empty line
            if len(row) != len(header):
                raise ValueError(f"{path}, line {line}: {len(row)} cells, but the header has {len(header)}")
            yield line, row[path_column], row[label_column].strip()
    except csv.Error as error:
        raise ValueError(f"{path}, line {line + 1}: {error}; correct the quotes of this line") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any, Any]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: no json: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested thousands deep, a number of thousands of digits
        raise ValueError(f"{path}: no json that can be read: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list; expected [{{'path': ..., 'label': ...}}, ...]")
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, dict) or not all(name in entry for name in COLUMNS):
            raise ValueError(f"{path}, entry {number}: expected an object with the keys path and label")
        yield number, entry["path"], entry["label"]


def wrong_path(name: Any) -> str:
    """What is wrong with a path as it stands in a file; empty for nothing."""
    if not isinstance(name, str) or not name:
        return "the path is empty; name an image below data.root" if name == "" else f"the path is {name!r}, not text"
    if _CONTROL.search(name):
        return f"the path {name[:80]!r} has a control character; rename the file"
    if name[0] == "/" or re.match(r"[A-Za-z]:|\\", name):
        return f"the path {name[:80]!r} is absolute; paths are relative to data.root"
    if "\\" in name:
        return f"the path {name[:80]!r} has a backslash; write /"
    plain = posixpath.normpath(name)
    if plain == ".." or plain.startswith("../"):
        return f"the path {name[:80]!r} leaves data.root; paths stay below it"
    if plain != name:
        return f"the path {name[:80]!r} has a shorter spelling; write {plain[:80]!r}"
    try:
        length = len(name) if name.isascii() else len(name.encode())
    except UnicodeEncodeError:
        return f"the path {name[:80]!r} is not valid Unicode; rename the file"
    if length > MAX_PATH_BYTES or (length > MAX_NAME_BYTES and _longest(name) > MAX_NAME_BYTES):
        return f"the path {name[:80]!r}... has {length} bytes; at most {MAX_PATH_BYTES}, {MAX_NAME_BYTES} for each name"
    return ""


def _longest(name: str) -> int:
    return max(len(part.encode()) for part in name.split("/"))


def _wrong_label(label: Any) -> str:
    """What is wrong with a label, whatever the others are; empty for nothing."""
    if label is None or label == "":
        return "the label is missing; give a class name or an integer"
    if isinstance(label, bool) or not isinstance(label, str | int):
        return f"the label {label!r} is neither a class name nor an integer"
    if len(text := str(label)) > MAX_LABEL_CHARACTERS or _CONTROL.search(text):
        return f"the label {text[:80]!r} has control characters or more than {MAX_LABEL_CHARACTERS} characters"
    return ""
