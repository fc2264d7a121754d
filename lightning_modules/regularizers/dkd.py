"""Decoupled knowledge distillation.

Zhao, Cui, Song, Qiu, Liang. "Decoupled Knowledge Distillation". CVPR 2022, arXiv 2203.08679. Official code:
megvii-research/mdistiller.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from kernels.batch import Batch
from kernels.distillation import dkd_loss
from lightning_modules.regularizers.distilling import LogitDistilling


class DKD(LogitDistilling):
    """``weight * (alpha TCKD + beta NCKD)``: the class of the label and the order of the others are weighed apart.

    Args:
        alpha: of the binary part, label against rest.
        beta: of the other classes among themselves. The paper for CIFAR-100: 8, 6 for wide residual networks and 2 for
            plain residual ones; for ImageNet 0.5 to 2.
        temperature: T; 4 for CIFAR-100, 1 for ImageNet.
        warmup_epochs: 20 as in the paper's runs of 240 epochs; 1 for its 100 epochs of ImageNet. The first epoch
            already has a share, as the official code counts.
        keys: ``weight``, ``head``, ``standardize``, ``stop_epoch``, ``teacher``, ``view`` (see ``LogitDistilling``).
    """

    refuses = {
        **LogitDistilling.refuses,
        "mixes_labels": "a mixed image has two classes, and the part between the class of the label and the rest is "
        "defined for one; remove it with ~mixing, or take +regularizer=kd, which reads no label",
    }

    def __init__(
        self,
        *,
        alpha: Annotated[float, "x >= 0"] = 1.0,
        beta: Annotated[float, "x >= 0"] = 8.0,
        temperature: Annotated[float, "x > 0"] = 4.0,
        warmup_epochs: Annotated[int, "x >= 0"] = 20,
        **keys: Any,
    ) -> None:
        super().__init__(warmup_epochs=warmup_epochs, **keys)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def of_logits(self, student_BC: Tensor, teacher_BC: Tensor, batch: Batch) -> Tensor:
        return dkd_loss(
            student_BC, teacher_BC, batch.label, alpha=self.alpha, beta=self.beta, temperature=self.temperature
        )
