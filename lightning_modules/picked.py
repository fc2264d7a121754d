"""A head of which some of the classes are looked at, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernels.batch import Output
from lightning_modules.heads.base import Head


class Picked(Head):
    """The logits of ``order`` alone, in that order: a network with other classes beside data that has some of them.

    It lies in no folder of parts, so that no configuration can name it.

    Args:
        head: that was trained; its weights stay its own.
        order: classes by their number in ``head``; None for no logits at all, where its classes mean nothing here.

    Example:
        >>> Picked(Linear(64, 10), [3, 1])(torch.randn(2, 64)).logits.shape
        torch.Size([2, 2])
    """

    order: Tensor | None

    def __init__(self, head: Head, order: Sequence[int] | None) -> None:
        super().__init__(head.in_features, head.num_classes if order is None else len(order))
        self.head = head
        self.gives = head.gives if order is not None else head.gives - {"logits"}  # type: ignore[misc]
        self.register_buffer("order", None if order is None else torch.tensor(order))

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        output: Output = self.head(features_BD)
        if self.order is None or output.logits is None:
            return replace(output, logits=None)
        return replace(output, logits=output.logits[:, self.order])
