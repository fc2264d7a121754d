"""Means of features by class, in one pass over any split of the data.

Shape legend: B samples, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.margin_softmax import class_labels


@dataclass(slots=True)
class ClassMeans:
    """Sums and counts of the features seen so far. Sums are float64, so the split changes nothing but their rounding.

    Several processes add up ``sums`` and ``counts``; a sampler that pads would count samples twice.

    Attributes:
        sums: ``[C, D]`` float64.
        counts: ``[C]`` int64.

    Example:
        >>> seen = ClassMeans.empty(2, 1).add(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
        >>> seen.means(), seen.counts
        (tensor([[2.],
                [0.]], dtype=torch.float64), tensor([2, 0]))
    """

    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, num_classes: int, width: int, device: torch.device | str | None = None) -> ClassMeans:
        """Nothing seen of C classes and D features.

        Raises:
            ValueError: no class or no feature.
        """
        if num_classes < 1 or width < 1:
            raise ValueError(f"means of {num_classes} classes and {width} features; both numbers must be at least 1")
        return cls(
            torch.zeros(num_classes, width, dtype=torch.float64, device=device),
            torch.zeros(num_classes, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> ClassMeans:
        """Take a batch in, ``[B, D]`` and ``[B]`` classes below C; returns itself.

        Raises:
            ValueError: shapes that do not fit, labels that are no integers.
        """
        if features.ndim != 2 or features.shape[1] != self.sums.shape[1]:
            raise ValueError(
                f"features of shape {list(features.shape)} for means of {self.sums.shape[1]} features; give [B, "
                f"{self.sums.shape[1]}]"
            )
        labels = class_labels(labels, features)
        self.sums.index_add_(0, labels, features.double())
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        return self

    def merge(self, other: ClassMeans) -> ClassMeans:
        """Take in what another one has seen; returns itself.

        Raises:
            ValueError: other numbers of classes or features.
        """
        if other.sums.shape != self.sums.shape:
            raise ValueError(
                f"sums of shape {list(other.sums.shape)} cannot be merged into {list(self.sums.shape)}; both must be "
                "of the same classes and features"
            )
        self.sums += other.sums
        self.counts += other.counts
        return self

    def means(self) -> Tensor:
        """``[C, D]`` float64; a row of zeros, which has no direction, for a class of which ``counts`` is 0."""
        return self.sums / self.counts.clamp_min(1)[:, None]
