"""Whether a batch can be attacked or corrupted at all."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.batch import Batch


def check_batch(batch: Batch, logits: Tensor, classes: int) -> None:
    """Refuse what an accuracy under changes of the images would mean nothing for.

    Args:
        batch: as evaluated.
        logits: ``[B, C]`` of the network for it.
        classes: of the data.

    Raises:
        ValueError: images outside of [0, 1], soft labels, another number of classes, fewer than two, or scores that are
            not finite.
    """
    if batch.label.ndim != 1:
        raise ValueError(f"labels of shape {list(batch.label.shape)}; an accuracy needs one class for each image")
    if logits.shape[1] != classes or classes < 2:
        raise ValueError(
            f"the network has {logits.shape[1]} classes and the data {classes}; they must be the same two or more: "
            "evaluate it on the data it was trained for, or train a new head"
        )
    low, high = (float(value) for value in torch.aminmax(batch.image))
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images reach from {low:.4g} to {high:.4g}; they are changed within [0, 1]: give images as the "
            "data modules do, and leave normalization to the network"
        )
    check_finite(logits, "an image")


def check_finite(logits: Tensor, what: str) -> None:
    """Refuse scores of which no prediction means anything.

    Raises:
        ValueError: not all are finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            f"the network's scores for {what} are not finite; evaluate weights that were trained without NaN, in "
            "float32"
        )
