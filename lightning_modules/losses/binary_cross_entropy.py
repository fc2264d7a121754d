"""One-against-rest binary cross-entropy."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Loss
from lightning_modules.precision import at_least_float32


class BinaryCrossEntropy(Loss):
    """``mean_c BCE(sigmoid(z_c), y_c)`` per sample (Wightman et al. 2021, "ResNet strikes back", arXiv 2110.00476).

    Args:
        label_smoothing: s in [0, 1): targets become ``(1 - s) y + s / C``.
        target_threshold: targets above it count as 1, the others as 0 (mixed labels made hard); None keeps them soft.
        sum_classes: sum over classes instead of the mean.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        *,
        label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0,
        target_threshold: Annotated[float, "0 <= x < 1"] | None = None,
        sum_classes: bool = False,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.target_threshold = target_threshold
        self.sum_classes = sum_classes

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        logits_BC = at_least_float32(outputs["main"].class_scores)
        classes = logits_BC.shape[1]
        target_BC = batch.label if batch.label.ndim == 2 else one_hot(batch.label, classes)
        target_BC = target_BC.to(logits_BC.dtype)
        if self.label_smoothing:
            target_BC = target_BC * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.target_threshold is not None:
            target_BC = (target_BC > self.target_threshold).to(logits_BC.dtype)
        loss_BC = binary_cross_entropy_with_logits(logits_BC, target_BC, reduction="none")
        return {"binary_cross_entropy": loss_BC.sum(1) if self.sum_classes else loss_BC.mean(1)}
