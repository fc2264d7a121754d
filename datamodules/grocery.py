"""The embedded set: 40 kinds of fruit and vegetables, natural photographs, 48 px."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.augment import BatchAugment

FOLDER = Path(__file__).parent / "grocery_mini"


class Grocery(ArrayData):
    """25 training and 25 test photographs of each of 40 classes; comes with the package.

    Source: Klasson, Zhang, Kjellstrom (2019), "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
    Labels", WACV, arXiv:1901.00711; MIT licence beside the images. Train and test come from the official splits.

    Args:
        seed: the run's seed.
        augment: what training does to the images; None leaves them as they are.
        batch_size, eval_batch_size, num_workers, val_fraction, split_seed, limit_train, limit_test, drop_last: see
            ``ImageData``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        augment: BatchAugment | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        num_workers: int = 0,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            seed,
            augment=augment,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            val_fraction=val_fraction,
            split_seed=split_seed,
            limit_train=limit_train,
            limit_test=limit_test,
            drop_last=drop_last,
        )

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        from PIL import Image

        facts = json.loads((FOLDER / "grocery40.json").read_text(encoding="utf-8"))
        tile, columns, classes = facts["tile"], facts["columns"], facts["classes"]
        mosaic = torch.from_numpy(np.array(Image.open(FOLDER / "grocery40_48.jpg", formats=["JPEG"]).convert("RGB")))
        tiles = mosaic.view(len(classes), tile, columns, tile, 3).permute(0, 2, 4, 1, 3)

        def part(columns: list[int]) -> tuple[Tensor, Tensor]:
            chosen = tiles[:, columns[0] : columns[1]]
            labels = torch.arange(len(classes)).repeat_interleave(chosen.shape[1])
            return chosen.reshape(-1, 3, tile, tile), labels

        return part(facts["train_columns"]), part(facts["test_columns"]), tuple(classes)
