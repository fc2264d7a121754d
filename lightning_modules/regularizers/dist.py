"""DIST: distillation by correlation.

Huang, You, Wang, Qian, Xu. "Knowledge Distillation from A Stronger Teacher". NeurIPS 2022, arXiv 2205.10536. Official
code: hunto/DIST_KD.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from kernels.batch import Batch
from kernels.distillation import dist_loss
from lightning_modules.regularizers.distilling import LogitDistilling


class DIST(LogitDistilling):
    """``weight * T^2 (beta inter + gamma intra)``: 1 - the correlation of rows, and of columns, of the probabilities.

    A column holds a class over the batch, so that the term is of the whole update: the logits of all processes are
    gathered, and micro-batches are refused. Labels play no part.

    Args:
        temperature: T; 1 in the official code for ImageNet, 4 for CIFAR-100.
        beta: of inter, over the classes of a sample.
        gamma: of intra, over the samples of a class.
        keys: ``weight``, ``head``, ``standardize``, ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see
            ``LogitDistilling``).
    """

    per_sample = False

    def __init__(
        self,
        *,
        temperature: Annotated[float, "x > 0"] = 4.0,
        beta: Annotated[float, "x >= 0"] = 1.0,
        gamma: Annotated[float, "x >= 0"] = 1.0,
        **keys: Any,
    ) -> None:
        super().__init__(**keys)
        self.temperature, self.beta, self.gamma = temperature, beta, gamma

    def of_logits(self, student_BC: Tensor, teacher_BC: Tensor, batch: Batch) -> Tensor:
        if not len(student_BC):
            return student_BC.sum()
        return dist_loss(student_BC, teacher_BC, temperature=self.temperature, beta=self.beta, gamma=self.gamma)
