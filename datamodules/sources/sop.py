"""Stanford Online Products: 22,634 products, half of which train."""

from __future__ import annotations

from datamodules.disjoint_files import DisjointFiles, Listed, from_rows
from datamodules.labels.list_file import read_list
from datamodules.reading.folder_tree import need_root

COLUMNS = ("image_id", "class_id", "super_class_id", "path")


class SOP(DisjointFiles):
    """The published layout: ``Ebay_train.txt``, ``Ebay_test.txt`` and the folders of the photographs.

    Source: Oh Song, Xiang, Jegelka, Savarese (2016), "Deep Metric Learning via Lifted Structured Feature Embedding",
    CVPR, arXiv:1511.06452: 59,551 photographs of 11,318 products train, 60,502 of 11,316 test. A class is called by its
    number in the lists.

    Args:
        seed: the run's seed.
        **common: the keys of ``DisjointFiles``, ``ImageFiles`` and ``ImageData``.
    """

    def listed(self) -> tuple[Listed, Listed]:
        need_root(self.root, "Ebay_train.txt and Ebay_test.txt")
        return self._part("Ebay_train.txt"), self._part("Ebay_test.txt")

    def _part(self, name: str) -> Listed:
        table = read_list(self.root / name, COLUMNS, header=True)
        numbers = table.integers("class_id")
        classes = sorted(set(numbers))
        place = {number: label for label, number in enumerate(classes)}
        rows = table.images("path", "class_id")
        return from_rows(self.root, rows, [place[number] for number in numbers], tuple(map(str, classes)))
