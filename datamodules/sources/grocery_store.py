"""The Grocery Store Dataset: 5,421 photographs of 81 kinds of fruit, vegetables and packages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.disjoint_files import Listed, from_rows
from datamodules.image_files import ImageFiles
from datamodules.labels.label_rows import text_of
from datamodules.labels.list_file import ListFile, read_list
from datamodules.reading.file_list import FileList
from datamodules.reading.folder_tree import need_root
from datamodules.sources.labelled_files import refuse_shared

PARTS = ("train", "val", "test")
COLUMNS = ("path", "fine", "coarse")


class GroceryStore(ImageFiles):
    """The published layout: ``{train,val,test}.txt``, ``classes.csv`` and the folders of the photographs.

    Also read: the same lists as ``.csv`` files with the header ``path,fine,coarse``, and ``classes.json`` whose
    ``fine`` is the list of names. Classes are the 81 fine ones.

    Source: Klasson, Zhang, Kjellstrom (2019), "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
    Labels", WACV, arXiv:1901.00711.

    Args:
        seed: the run's seed.
        root: folder of the lists (``dataset`` in the published repository); no path leaves it.
        split: ``official``: the published parts, of which validation lacks 21 classes (``allow_missing_classes``).
            ``classes``: the parts put together; the first 41 classes train, the other 40 test.
        **common: the keys of ``ImageFiles`` and ``ImageData``.
    """

    def __init__(
        self, seed: int = 0, *, root: str, split: Literal["official", "classes"] = "classes", **common: Any
    ) -> None:
        super().__init__(seed, **common)
        if split not in ("official", "classes"):
            raise ValueError(f"data.split is {split!r}; choose official or classes")
        self.root, self.split = Path(os.path.expanduser(root)), split

    def read(self) -> None:
        need_root(self.root, "train.txt, val.txt, test.txt and classes.csv")
        names = fine_names(self.root)
        tables = {part: _table(self.root, part) for part in PARTS}
        refuse_shared([table.images("path", "fine") for table in tables.values()])
        listed = {part: self._listed(table, names) for part, table in tables.items()}
        if self.split == "official":
            self._official(listed, names, tables)
        else:
            self._by_classes(listed, names)

    def _official(self, listed: dict[str, Listed], names: tuple[str, ...], tables: dict[str, ListFile]) -> None:
        self.classes = names
        for part, found in listed.items():
            self.check_classes(part, found.labels, str(tables[part].path))
        self.files = {part: FileList(self.root, found.names) for part, found in listed.items()}
        self.train_labels, self.val_labels, self.test_labels = (listed[part].labels for part in PARTS)

    def _by_classes(self, listed: dict[str, Listed], names: tuple[str, ...]) -> None:
        together = [name for found in listed.values() for name in found.names]
        whole = Listed(together, torch.cat([found.labels for found in listed.values()]), names)
        train, test = whole.halves(len(names) - len(names) // 2)
        self.classes, self.test_classes = train.classes, test.classes
        self.train_labels, self.test_labels = train.labels, test.labels
        self.files = {"train": FileList(self.root, train.names), "test": FileList(self.root, test.names)}

    def _listed(self, table: ListFile, names: tuple[str, ...]) -> Listed:
        numbers = table.integers("fine")
        for row, number in enumerate(numbers):
            if number >= len(names):
                table.refuse(row, f"class {number} is outside 0..{len(names) - 1}")
        return from_rows(self.root, table.images("path", "fine"), numbers, names)


def _table(root: Path, part: str) -> ListFile:
    other = root / f"{part}.csv"
    published = not other.is_file()
    return read_list(root / f"{part}.txt" if published else other, COLUMNS, separator=",", header=not published)


def fine_names(root: Path) -> tuple[str, ...]:
    """Names of the fine classes in the order of their numbers, from ``classes.csv`` or ``classes.json``.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: numbers that are not 0, 1, 2, ..., or a file without the names.
    """
    path = root / "classes.json"
    if path.is_file():
        try:
            content = json.loads(text_of(path))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: no json that can be read: {error}") from error
        names = content.get("fine") if isinstance(content, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} has no list 'fine' of class names; bring the published file")
        return tuple(names)
    rows = [line.split(",") for line in _lines(root / "classes.csv")[1:]]
    for number, row in enumerate(rows):
        if len(row) < 2 or row[1].strip() != str(number):
            raise ValueError(
                f"{root / 'classes.csv'}: expected class {number} in its order, got {','.join(row)[:200]!r}"
            )
    return tuple(row[0].strip() for row in rows)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; it comes with the photographs and names the classes")
    return [line for line in text_of(path).splitlines() if line.strip()]
