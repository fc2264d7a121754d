"""Images below one folder whose labels stand in csv or json files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datamodules.image_files import ImageFiles
from datamodules.labels.label_classes import class_list, to_labels
from datamodules.labels.label_paths import Inside
from datamodules.labels.label_rows import LabelFile, read_rows
from datamodules.reading.file_list import FileList
from datamodules.reading.folder_tree import need_root


class LabelledFiles(ImageFiles):
    """Images named by label files with the columns ``path`` (below ``root``) and ``label`` (class name or integer).

    Class names are the labels of the training file, sorted (by value where all are digits), unless ``classes`` gives
    them; the other parts are mapped to them by name. An image may stand in one part only.

    Args:
        seed: the run's seed.
        root: folder that holds the images; no path leaves it, not through symbolic links either.
        train: label file of the training part, relative to ``root`` (or absolute).
        test: that of the test part.
        val: that of the validation part; None splits validation from training.
        classes: names in the order of their numbers, where they are not to be those of the training file. Labels may
            be places in this list, unless a name in it looks like a number.
        **common: the keys of ``ImageFiles`` and ``ImageData``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        root: str,
        train: str = "train.csv",
        test: str = "test.csv",
        val: str | None = None,
        classes: list[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(seed, **common)
        self.root = Path(os.path.expanduser(root))
        self.label_files = {"train": train, "test": test, **({"val": val} if val is not None else {})}
        self.given_classes = classes

    def read(self) -> None:
        need_root(self.root, "the images")
        parts = {part: read_rows(self.root / name) for part, name in self.label_files.items()}
        self.classes = class_list(parts["train"], self.given_classes)
        given = self.given_classes is not None
        labels = {part: to_labels(rows, self.classes, given) for part, rows in parts.items()}
        for part, rows in parts.items():
            self.check_classes(part, labels[part], str(rows.path))
        refuse_shared(list(parts.values()))
        inside = Inside(self.root)
        for rows in parts.values():
            inside.check(rows)
        self.files = {part: FileList(self.root, rows.paths) for part, rows in parts.items()}
        self.train_labels, self.test_labels, self.val_labels = labels["train"], labels["test"], labels.get("val")


def refuse_shared(parts: list[LabelFile]) -> None:
    """Raise ValueError naming both lines of an image that stands in two parts."""
    for number, rows in enumerate(parts):
        place = {name: row for row, name in enumerate(rows.paths)}
        for other in parts[number + 1 :]:
            shared = next((row for row, name in enumerate(other.paths) if name in place), None)
            if shared is not None:
                name = other.paths[shared]
                other.refuse(shared, f"{name!r} stands in {rows.where(place[name])} too; an image belongs to one part")
