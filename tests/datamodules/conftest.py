"""A small image set in memory whose images can be told apart by their bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datamodules.arrays import ArrayData


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
