"""Softmax cross-entropy."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Loss
from lightning_modules.precision import at_least_float32


class CrossEntropy(Loss):
    """``-sum_c y_c log softmax(z)_c`` per sample, for integer or soft labels.

    Args:
        label_smoothing: s in [0, 1): the label becomes ``(1 - s) y + s / C`` (Szegedy et al. 2016, arXiv 1512.00567).
    """

    needs = frozenset({"logits"})

    def __init__(self, *, label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        logits_BC = at_least_float32(outputs["main"].class_scores)
        label = batch.label if batch.label.ndim == 1 else batch.label.to(logits_BC.dtype)
        return {
            "cross_entropy": cross_entropy(logits_BC, label, reduction="none", label_smoothing=self.label_smoothing)
        }
