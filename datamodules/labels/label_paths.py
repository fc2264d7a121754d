"""Whether the files that a label file names exist, and lie below the folder once symbolic links are followed."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.labels.label_rows import LabelFile
from datamodules.labels.unicode_form import in_composed_form


class Inside:
    """Checks paths below a folder, directory by directory: a million files cost as many listings as directories.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._real = root, root.resolve()
        self._regular: dict[str, frozenset[str]] = {}
        self._links: dict[str, frozenset[str]] = {}

    def check(self, rows: LabelFile) -> None:
        """Raise ValueError or FileNotFoundError naming the line of the first file that is absent or outside."""
        for row, name in enumerate(rows.paths):
            folder, _, file = name.rpartition("/")
            if folder not in self._regular:
                self._list(folder, rows, row)
            if file in self._regular[folder]:
                continue
            if file not in self._links[folder]:
                advice = self._other_form(name) or "correct the path or bring the image"
                raise FileNotFoundError(f"{rows.where(row)}: there is no file {self.root / name}; {advice}")
            self._follow(self.root / name, rows, row)

    def _other_form(self, name: str) -> str:
        """That the file is there under a name of another Unicode form, or nothing."""
        where = self.root
        for part in name.split("/"):
            names = os.listdir(where) if where.is_dir() else []
            alike = [own for own in names if in_composed_form(own) == in_composed_form(part)]
            if not alike:
                return ""
            where = where / alike[0]
        found = ascii(str(where.relative_to(self.root)))
        return f"{found} on the disk differs from {ascii(name)} in its Unicode form only; write both alike"

    def _list(self, folder: str, rows: LabelFile, row: int) -> None:
        """Remember what a directory holds, once it is known to lie inside."""
        where = self.root / folder
        regular, links = [], []
        if where.is_dir():
            self._refuse_outside(where, rows, row)
            with os.scandir(where) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_file():
                        regular.append(entry.name)
        self._regular[folder], self._links[folder] = frozenset(regular), frozenset(links)

    def _follow(self, path: Path, rows: LabelFile, row: int) -> None:
        self._refuse_outside(path, rows, row)
        if not path.is_file():
            raise FileNotFoundError(f"{rows.where(row)}: {path} is a link to no file; correct it or bring the image")

    def _refuse_outside(self, path: Path, rows: LabelFile, row: int) -> None:
        if not path.resolve().is_relative_to(self._real):
            rows.refuse(
                row,
                f"{path} is, through a symbolic link, {path.resolve()}, which is outside data.root={self.root}; "
                "set data.root to a folder that holds all images",
            )
