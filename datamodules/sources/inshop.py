"""In-Shop Clothes: training items, and queries that look for their item in a gallery."""

from __future__ import annotations

import torch

from datamodules.disjoint_files import DisjointFiles, Listed, from_rows
from datamodules.labels.list_file import ListFile, read_list
from datamodules.reading.folder_tree import need_root

LIST = "list_eval_partition.txt"
COLUMNS = ("image_name", "item_id", "evaluation_status")


class InShop(DisjointFiles):
    """The published layout: ``list_eval_partition.txt`` (or in ``Eval/``) and the folder ``img`` (or ``Img/img``).

    Source: Liu, Luo, Qiu, Wang, Tang (2016), "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations", CVPR: 25,882 photographs of 3,997 items train; 14,218 queries and a gallery of 12,612 show 3,985 other
    items. The test part holds both, in the order of the list; ``test_is_query`` tells them apart.

    Args:
        seed: the run's seed.
        **common: the keys of ``DisjointFiles``, ``ImageFiles`` and ``ImageData``.
    """

    FACTS = (*DisjointFiles.FACTS, "query")

    def listed(self) -> tuple[Listed, Listed]:
        need_root(self.root, f"{LIST} and img/")
        places = [self.root / LIST, self.root / "Eval" / LIST]
        path = next((place for place in places if place.is_file()), places[0])
        table = read_list(path, COLUMNS, header=True, counted=True)
        roles = table.columns["evaluation_status"]
        for row, role in enumerate(roles):
            if role not in ("train", "query", "gallery"):
                table.refuse(row, f"evaluation_status is {role!r}; expected train, query or gallery")
        parts = [[row for row, role in enumerate(roles) if (role == "train") == train] for train in (True, False)]
        if not all(parts):
            raise ValueError(f"{path} has no rows of {'test' if parts[0] else 'training'}; bring the whole file")
        self.test_is_query = torch.tensor([roles[row] == "query" for row in parts[1]])
        train, test = (self._part(table, rows) for rows in parts)
        return train, test

    def facts(self, train: Listed, test: Listed) -> dict[str, int]:
        assert self.test_is_query is not None
        return super().facts(train, test) | {"query": int(self.test_is_query.sum())}

    def _part(self, table: ListFile, chosen: list[int]) -> Listed:
        columns = {name: [cells[row] for row in chosen] for name, cells in table.columns.items()}
        part = ListFile(table.path, columns, [table.lines[row] for row in chosen])
        classes = tuple(sorted(set(columns["item_id"])))
        place = {name: label for label, name in enumerate(classes)}
        below = "" if (self.root / "img").is_dir() else "Img/"
        rows = part.images("image_name", "item_id", below=below)
        return from_rows(self.root, rows, [place[name] for name in columns["item_id"]], classes)
