"""Symmetric label noise: every wrong class is equally likely."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from datamodules.labels.label_noise import LabelNoise
from kernels.counter_rng import bits, uniform


class Symmetric(LabelNoise):
    """Each label is replaced with probability ``rate``, independently, by a class drawn uniformly.

    Two conventions are published. Exclusive (Han et al. 2018, "Co-teaching", arXiv:1804.06872): the new class is
    another one, so the share of wrong labels is ``rate``. Inclusive (Li et al. 2020, "DivideMix", arXiv:2002.07394):
    it is any of the C classes, so the share is ``rate * (C - 1) / C``; 50 % are 45 % on ten classes.

    Args:
        rate: probability of a draw.
        include_true: the inclusive convention.
        **common: the keys of ``LabelNoise``.

    Example:
        >>> Symmetric(rate=1.0).apply(torch.tensor([0, 1, 0]), ("a", "b"), seed=0).tolist()
        [1, 0, 1]
    """

    def __init__(
        self, *, rate: Annotated[float, "0 <= x <= 1"] = 0.4, include_true: bool = False, **common: Any
    ) -> None:
        super().__init__(**common)
        self.rate, self.include_true = rate, include_true

    def apply(self, labels_N: Tensor, classes: tuple[str, ...], seed: int) -> Tensor:
        index_N = torch.arange(len(labels_N))
        drawn_N = bits(seed, 0, index_N, 0, ["noise.class"])[0] & (2**63 - 1)
        if self.include_true:
            other_N = drawn_N % len(classes)
        else:
            other_N = (labels_N + 1 + drawn_N % (len(classes) - 1)) % len(classes)
        return torch.where(uniform(seed, 0, index_N, 0, ["noise"])[0] < self.rate, other_N, labels_N)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "rate": self.rate, "include_true": self.include_true}
