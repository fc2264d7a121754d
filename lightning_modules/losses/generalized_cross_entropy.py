"""Generalized cross-entropy.

Zhang, Sabuncu. "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels". NeurIPS 2018,
arXiv 1805.07836.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from kernels.batch import Batch, Output, Step
from kernels.comp_sum import generalized_cross_entropy
from lightning_modules.part import Loss


class GeneralizedCrossEntropy(Loss):
    """``(1 - p_y^q) / q`` per sample: wrong labels, which the network finds unlikely, pull less.

    The paper's L_q; its truncated variant, which alternates with a selection of samples, is not here. Soft labels
    average the losses of the classes.

    Args:
        q: 0 is cross-entropy, 1 is half the mean absolute error; the paper uses 0.7.
    """

    needs = frozenset({"logits"})

    def __init__(self, *, q: Annotated[float, "0 <= x <= 1"] = 0.7) -> None:
        super().__init__()
        self.q = q

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        loss_B = generalized_cross_entropy(outputs["main"].class_scores, batch.label, q=self.q)
        return {"generalized_cross_entropy": loss_B}
