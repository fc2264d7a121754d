"""The embedded set: 40 kinds of fruit and vegetables, natural photographs, 48 px."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.reading.decode import read_rgb

FOLDER = Path(__file__).parents[1] / "grocery_mini"


class Grocery(ArrayData):
    """25 training and 25 test photographs of each of 40 classes; comes with the package.

    Source: Klasson, Zhang, Kjellstrom (2019), "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
    Labels", WACV, arXiv:1901.00711; MIT licence beside the images. Train and test come from the official splits.

    Args:
        seed: the run's seed.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        tiles, facts = read_tiles()
        train, test = facts["train_columns"], facts["test_columns"]
        return rows(tiles[:, slice(*train)]), rows(tiles[:, slice(*test)]), tuple(facts["classes"])


class GroceryDisjoint(ArrayData):
    """The same photographs with other classes in the test part, as metric learning is tested.

    The first 20 classes train and the last 20 test, in the order of ``grocery40.json`` (fruit before vegetables), with
    all 50 photographs of each: what the official splits separate is together here.

    Args:
        seed: the run's seed.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        tiles, facts = read_tiles()
        names, half = tuple(facts["classes"]), len(tiles) // 2
        self.test_classes = names[half:]
        return rows(tiles[:half]), rows(tiles[half:]), names[:half]


@cache
def read_tiles() -> tuple[Tensor, dict[str, Any]]:
    """``[C, 50, 3, 48, 48]`` uint8, a row of the mosaic for each class; and what ``grocery40.json`` says of it.

    Decoded once a process (14 MB); ``rows`` copies what it takes.
    """
    facts = json.loads((FOLDER / "grocery40.json").read_text(encoding="utf-8"))
    tile, columns, classes = facts["tile"], facts["columns"], facts["classes"]
    mosaic = torch.from_numpy(np.array(read_rgb(FOLDER / "grocery40_48.jpg")))
    return mosaic.view(len(classes), tile, columns, tile, 3).permute(0, 2, 4, 1, 3), facts


def rows(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """``[C, N, 3, H, W]`` -> ``[C * N, 3, H, W]`` and the label of each image."""
    labels = torch.arange(len(tiles)).repeat_interleave(tiles.shape[1])
    return tiles.flatten(0, 1), labels
