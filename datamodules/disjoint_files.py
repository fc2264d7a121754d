"""Image files whose test classes are not those of training: the base of the sets of metric learning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from datamodules.image_files import ImageFiles
from datamodules.labels.label_paths import Inside
from datamodules.labels.label_rows import LabelFile
from datamodules.labels.unicode_form import in_composed_form
from datamodules.reading.file_list import FileList
from datamodules.reading.folder_tree import class_names, scan
from datamodules.reading.walk import LeftOut


@dataclass(frozen=True, slots=True)
class Listed:
    """Images and their classes.

    Attributes:
        names: paths below the root.
        labels: ``[N]`` positions in ``classes``.
        classes: names.
    """

    names: list[str]
    labels: Tensor
    classes: tuple[str, ...]

    def of_classes(self, start: int, stop: int) -> Listed:
        """The images of the classes ``start .. stop - 1``, which are numbered from 0."""
        rows = ((self.labels >= start) & (self.labels < stop)).nonzero()[:, 0]
        return Listed([self.names[row] for row in rows.tolist()], self.labels[rows] - start, self.classes[start:stop])

    def halves(self, first: int) -> tuple[Listed, Listed]:
        """The images of the first classes, and those of the others."""
        return self.of_classes(0, first), self.of_classes(first, len(self.classes))


def from_rows(root: Path, rows: LabelFile, labels: Sequence[int], classes: tuple[str, ...]) -> Listed:
    """The rows of a list, once their files are known to lie below the root."""
    Inside(root).check(rows)
    return Listed(rows.paths, torch.tensor(labels, dtype=torch.int64), classes)


def from_folders(root: Path, *parts: str) -> Listed:
    """``root/CLASS/IMAGE``, or ``root/PART/CLASS/IMAGE`` with the same classes in every part, put together."""
    classes = class_names(root / parts[0] if parts else root, LeftOut())
    found = [(f"{part}/" if part else "", *scan(root / part, classes)) for part in parts or ("",)]
    names = [prefix + files.name(row) for prefix, files, _ in found for row in range(len(files))]
    return Listed(names, torch.cat([labels for *_, labels in found]), classes)


class DisjointFiles(ImageFiles):
    """Images read file by file whose test part has classes of its own. Subclasses define ``listed``.

    Validation holds out training classes (``val_fraction``), see ``ImageData``.

    Args:
        seed: the run's seed.
        root: folder of the set; no path leaves it.
        expect: ``{"train_classes": C, "train": N, "test_classes": C, "test": N}`` of a published set. What is read must
            agree; and where there is no ``root`` yet, everything but the images is built from these numbers, so that a
            recipe can be looked at.
        **common: the keys of ``ImageFiles`` and ``ImageData``.
    """

    FACTS: tuple[str, ...] = ("train_classes", "train", "test_classes", "test")

    def __init__(
        self, seed: int = 0, *, root: str, expect: dict[str, Annotated[int, "x >= 0"]] | None = None, **common: Any
    ) -> None:
        super().__init__(seed, **common)
        if self.allow_missing_classes:
            raise ValueError(
                f"data.allow_missing_classes=true means nothing to {type(self).__name__}, whose test classes are not "
                "those of training; set it to false"
            )
        self.root = Path(os.path.expanduser(root))
        if expect is not None and (set(expect) != set(self.FACTS) or min(expect.values()) < 1):
            raise ValueError(f"data.expect={expect} must be null or give a number for each of {', '.join(self.FACTS)}")
        self.expect = expect

    def listed(self) -> tuple[Listed, Listed]:
        """Images of training and of test; may set ``test_is_query``."""
        raise NotImplementedError(f"{type(self).__name__} must define listed()")

    def facts(self, train: Listed, test: Listed) -> dict[str, int]:
        """What ``expect`` is compared with."""
        counts = (len(train.classes), len(train.names), len(test.classes), len(test.names))
        return dict(zip(DisjointFiles.FACTS, counts, strict=True))

    def read(self) -> None:
        try:
            train, test = self.listed()
        except FileNotFoundError as error:
            if self.expect is None or self.root.exists():
                raise
            self.absent = f"{error}; data.root=FOLDER says where the images are"
            train, test = (_stand_in(part, self.expect) for part in ("train", "test"))
            test = Listed([], test.labels[:0], test.classes)
        self.classes, self.train_labels = train.classes, train.labels
        self.test_classes, self.test_labels = test.classes, test.labels
        if self.absent:
            self.files = {}
            return
        self._check(train, test)
        self.files = {"train": FileList(self.root, train.names), "test": FileList(self.root, test.names)}

    def _check(self, train: Listed, test: Listed) -> None:
        refuse_shared_classes(self.root, ("training", train.classes), ("test", test.classes))
        found = self.facts(train, test)
        if self.expect is not None and found != self.expect:
            raise ValueError(
                f"{self.root} holds {_said(found)}, and data.expect says {_said(self.expect)}; complete the set, or "
                "set data.expect=null"
            )


def refuse_shared_classes(root: Path, one: tuple[str, tuple[str, ...]], other: tuple[str, tuple[str, ...]]) -> None:
    """Raise ValueError naming a class of two parts, which are given as (what they are called, class names)."""
    names, others = ({in_composed_form(name): name for name in part} for _, part in (one, other))
    if shared := sorted(names[name] for name in names.keys() & others):
        raise ValueError(
            f"{root}: {len(shared)} classes are both in {one[0]} and in {other[0]}, the first is {shared[0]!r}; "
            "use data=folder or data=labelled_files for a set whose parts share their classes"
        )


def _said(facts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(facts.items()))


def _stand_in(part: str, expect: dict[str, int]) -> Listed:
    """Sizes without images, from the declared facts."""
    classes = tuple(f"{part} class {label}" for label in range(expect[f"{part}_classes"]))
    return Listed([], torch.arange(expect[part]) % len(classes), classes)
