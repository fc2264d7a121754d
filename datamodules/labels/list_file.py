"""The lists that come with published image sets: plain text, one row a line, cells apart by spaces or commas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from datamodules.labels.label_rows import LabelFile, text_of, wrong_path


@dataclass(frozen=True, slots=True)
class ListFile:
    """The rows of a list, as columns.

    Attributes:
        path: of the file.
        columns: cells by the name of their column.
        lines: where each row stands, from 1.
        unit: what ``lines`` counts, in messages.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def refuse(self, row: int, why: str) -> NoReturn:
        """Raise ValueError naming the line of a row."""
        raise ValueError(f"{self.path}, {self.unit} {self.lines[row]}: {why}")

    def integers(self, column: str) -> list[int]:
        """A column of numbers that are not negative; ValueError naming the first line with anything else."""
        for row, cell in enumerate(self.columns[column]):
            if not (cell.isascii() and cell.isdigit() and len(cell) < 10):
                self.refuse(row, f"{column} is {cell[:80]!r}, expected a number")
        return [int(cell) for cell in self.columns[column]]

    def unique(self, column: str) -> None:
        """Raise ValueError naming both lines where a cell stands twice."""
        seen: dict[str, int] = {}
        for row, cell in enumerate(self.columns[column]):
            if seen.setdefault(cell, row) != row:
                self.refuse(row, f"{cell!r} stands already on {self.unit} {self.lines[seen[cell]]}; keep one of them")

    def images(self, paths: str, labels: str, below: str = "") -> LabelFile:
        """Two columns as the rows of a label file, the paths checked, each once.

        Args:
            paths: the column of the images.
            labels: that of their classes.
            below: folder, with ``/`` at its end, that the paths are relative to.
        """
        for row, name in enumerate(self.columns[paths]):
            if wrong := wrong_path(name):
                self.refuse(row, wrong)
        self.unique(paths)
        names = [below + name for name in self.columns[paths]]
        return LabelFile(self.path, self.unit, names, list(self.columns[labels]), self.lines)


def read_list(
    path: Path, columns: Sequence[str], *, separator: str | None = None, header: bool = False, counted: bool = False
) -> ListFile:
    """Rows of a text file; empty lines are left out.

    Args:
        path: of the file.
        columns: their names.
        separator: between cells; None means any white space.
        header: a line before the rows names the columns.
        counted: the first line is the number of rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the line: too few or too many cells, another header, another number of rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; it comes with the images and lists them")
    numbered = [(number, line) for number, line in enumerate(text_of(path).split("\n"), start=1) if line.strip()]
    cells = [(number, [cell.strip() for cell in line.split(separator)]) for number, line in numbered]
    expected = _first(path, cells, "the number of rows")[0] if counted else None
    if header and (found := _first(path, cells, " ".join(columns)))[0:] != list(columns):
        raise ValueError(f"{path}: the header is {' '.join(found)[:200]!r}, expected {' '.join(columns)!r}")
    if expected is not None and expected != str(len(cells)):
        raise ValueError(f"{path} says that it has {expected[:20]} rows and has {len(cells)}; bring the whole file")
    for number, row in cells:
        if len(row) != len(columns) or not all(row):
            raise ValueError(f"{path}, line {number}: {len(row)} cells, expected {len(columns)}: {', '.join(columns)}")
    if not cells:
        raise ValueError(f"{path} has no rows; expected one for each of {', '.join(columns)}")
    by_column = {name: [row[place] for _, row in cells] for place, name in enumerate(columns)}
    return ListFile(path, by_column, [number for number, _ in cells])


def _first(path: Path, cells: list[tuple[int, list[str]]], what: str) -> list[str]:
    """Take the first line away."""
    if not cells:
        raise ValueError(f"{path} is empty; expected {what!r} in its first lines")
    return cells.pop(0)[1]
