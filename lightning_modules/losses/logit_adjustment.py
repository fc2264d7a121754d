"""Logit adjustment: cross-entropy that learns what is left beside the class frequencies.

Menon, Jayasumana, Rawat, Jain, Veit, Kumar. "Long-tail Learning via Logit Adjustment". ICLR 2021, arXiv 2007.07314.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output, Step, Update
from lightning_modules.class_counts import ClassCounts
from lightning_modules.part import Context, Loss, TrainingData
from lightning_modules.precision import at_least_float32


class LogitAdjustment(Loss):
    """``-log softmax(z + tau log prior)_y`` for each sample, for integer or soft labels.

    Added in training only: predictions, and accuracy in training, are those of the plain logits, which tend to be
    right for balanced classes. The prior is that of the training labels before the first update; a class without a
    sample counts as one of one. A plain loop that does not call ``prepare`` counts the classes as they come.

    Args:
        tau: 0 is cross-entropy; 1 is consistent for the balanced error.
        label_smoothing: as for ``CrossEntropy``.
    """

    needs = frozenset({"logits"})
    counts: ClassCounts

    def __init__(
        self,
        *,
        tau: Annotated[float, "x >= 0"] = 1.0,
        label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0,
    ) -> None:
        super().__init__()
        self.tau, self.label_smoothing = tau, label_smoothing

    def setup(self, context: Context) -> None:
        self.counts = ClassCounts(context.num_classes)

    def prepare(self, data: TrainingData) -> None:
        self.counts.prepare(data)

    def log_prior(self) -> Tensor:
        """``[C]`` in float64."""
        count_C = self.counts.at_least_one()
        return (count_C / count_C.sum()).log()

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        logits_BC = at_least_float32(outputs["main"].class_scores)
        adjusted_BC = logits_BC + self.tau * self.log_prior().to(logits_BC.dtype)
        label = batch.label if batch.label.ndim == 1 else batch.label.to(logits_BC.dtype)
        return {self.name: cross_entropy(adjusted_BC, label, reduction="none", label_smoothing=self.label_smoothing)}

    def commit(self, result: Update, step: Step) -> None:
        self.counts.commit(result.batch.label, step)
