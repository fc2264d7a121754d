"""CUB-200-2011: 200 kinds of birds; the first 100 train, the others test."""

from __future__ import annotations

from datamodules.disjoint_files import DisjointFiles, Listed, from_rows
from datamodules.labels.list_file import ListFile, read_list
from datamodules.reading.folder_tree import need_root


class CUB(DisjointFiles):
    """The published layout: ``images.txt``, ``image_class_labels.txt``, ``classes.txt`` and ``images/``.

    Source: Wah, Branson, Welinder, Perona, Belongie (2011), "The Caltech-UCSD Birds-200-2011 Dataset", Caltech
    CNS-TR-2011-001. The split is that of metric learning (Oh Song, Xiang, Jegelka, Savarese 2016, arXiv:1511.06452):
    classes 1-100 with 5,864 photographs train, 101-200 with 5,924 test; the official split, ``train_test_split.txt``,
    is not used, and no bounding box.

    Args:
        seed: the run's seed.
        **common: the keys of ``DisjointFiles``, ``ImageFiles`` and ``ImageData``.
    """

    def listed(self) -> tuple[Listed, Listed]:
        need_root(self.root, "images.txt and images/")
        images = read_list(self.root / "images.txt", ("image id", "path"))
        labels = read_list(self.root / "image_class_labels.txt", ("image id", "class id"))
        classes = read_list(self.root / "classes.txt", ("class id", "name"))
        for table, column in ((images, "image id"), (labels, "image id"), (classes, "class id"), (classes, "name")):
            table.unique(column)
        class_of = dict(zip(labels.columns["image id"], numbers_in(labels, classes), strict=True))
        for row, number in enumerate(images.columns["image id"]):
            if number not in class_of:
                images.refuse(row, f"image {number!r} has no line in {labels.path.name}")
        if len(class_of) != len(images):
            raise ValueError(f"{labels.path} has {len(labels)} images and {images.path} has {len(images)}; bring both")
        order = sorted(range(len(classes)), key=classes.integers("class id").__getitem__)
        place = {row: label for label, row in enumerate(order)}
        rows = images.images("path", "image id", below="images/")
        numbers = [place[class_of[number]] for number in images.columns["image id"]]
        names = tuple(classes.columns["name"][row] for row in order)
        return from_rows(self.root, rows, numbers, names).halves(len(names) // 2)


def numbers_in(labels: ListFile, classes: ListFile) -> list[int]:
    """The row in ``classes`` of every class id of ``labels``; ValueError naming the line of one that is not there."""
    row_of = {number: row for row, number in enumerate(classes.integers("class id"))}
    numbers = labels.integers("class id")
    for row, number in enumerate(numbers):
        if number not in row_of:
            labels.refuse(row, f"class {number} is not in {classes.path.name}")
    return [row_of[number] for number in numbers]
