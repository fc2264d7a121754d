"""Many paths in little memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


class FileList:
    """Relative paths below a folder, in two blocks of memory that loader processes share."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Path:
        return self.folder / self.name(index)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])
