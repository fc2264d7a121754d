"""What several tests need: a small image set in memory, and sets of files that are ready to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.image_files import ImageFiles
from kernels.batch import Batch


class Tiny(ArrayData):
    """60 training and 20 test images of 8 px, 4 classes."""

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        generator = torch.Generator().manual_seed(1)
        train = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
        test = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator)
        return (train, torch.arange(60) % 4), (test, torch.arange(20) % 4), ("a", "b", "c", "d")


@pytest.fixture
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture
def ready() -> Callable[..., Any]:
    """``ready(kind, root, **keys)``: a set of image files with small settings, after ``setup``."""

    def build(kind: type[ImageFiles], root: Path, **keys: Any) -> Any:
        settings = {"image_size": 8, "batch_size": 2, "eval_batch_size": 100, "val_fraction": 0.0, **keys}
        data = kind(0, root=str(root), **settings)
        data.setup()
        return data

    return build


@pytest.fixture
def values() -> Callable[[Iterable[Batch]], dict[str, list[int]]]:
    """``values(loader)``: grey values and labels of its images, in its order."""

    def read(loader: Iterable[Batch]) -> dict[str, list[int]]:
        batches = list(loader)
        image, label = torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches])
        return {"value": (image[:, 0, 4, 4] * 255).round().long().tolist(), "label": label.tolist()}

    return read
