"""The embedded set: 40 kinds of fruit and vegetables, natural photographs, 48 px."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.decode import read_rgb

FOLDER = Path(__file__).parent / "grocery_mini"


class Grocery(ArrayData):
    """25 training and 25 test photographs of each of 40 classes; comes with the package.

    Source: Klasson, Zhang, Kjellstrom (2019), "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
    Labels", WACV, arXiv:1901.00711; MIT licence beside the images. Train and test come from the official splits.

    Args:
        seed: the run's seed.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        facts = json.loads((FOLDER / "grocery40.json").read_text(encoding="utf-8"))
        tile, columns, classes = facts["tile"], facts["columns"], facts["classes"]
        mosaic = torch.from_numpy(np.array(read_rgb(FOLDER / "grocery40_48.jpg")))
        tiles = mosaic.view(len(classes), tile, columns, tile, 3).permute(0, 2, 4, 1, 3)

        def part(columns: list[int]) -> tuple[Tensor, Tensor]:
            chosen = tiles[:, columns[0] : columns[1]]
            labels = torch.arange(len(classes)).repeat_interleave(chosen.shape[1])
            return chosen.reshape(-1, 3, tile, tile), labels

        return part(facts["train_columns"]), part(facts["test_columns"]), tuple(classes)
