"""What a teacher may know of the images of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """Facts about the training part.

    Attributes:
        key: gives sha256 of all that decides the images (``ImageData.key("train")``); not asked before training begins.
        index: ``[N]`` positions of the samples in use, in the full training set.
        augmented: whether training sees the images otherwise than they are stored.
        augmentations: epochs after which augmentations come again; None for never.
        visits: how often an epoch visits a sample at most; None where there is no bound.
        substituted: whether another image may stand in the place of one that cannot be read.
        precision: of the trainer.
    """

    key: Callable[[], str]
    index: Tensor
    augmented: bool
    augmentations: int | None = None
    visits: int | None = 1
    substituted: bool = False
    precision: str = "32-true"
