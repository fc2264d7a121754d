"""Knowledge distillation.

Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network". 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from kernels.batch import Batch
from kernels.distillation import kd_loss
from lightning_modules.regularizers.distilling import LogitDistilling


class KD(LogitDistilling):
    """``weight * T^2 * KL(softmax(v / T) || softmax(z / T))`` of the teacher's logits v and the student's z.

    Labels play no part, so that mixed images are taught as they are.

    Args:
        temperature: T; 4 for CIFAR-100, 1 for ImageNet.
        keys: ``weight``, ``head``, ``standardize``, ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see
            ``LogitDistilling``). The paper weighs cross-entropy 0.1 and this 0.9; the ND paper 1 and 1 to 4.
    """

    def __init__(self, *, temperature: Annotated[float, "x > 0"] = 4.0, **keys: Any) -> None:
        super().__init__(**keys)
        self.temperature = temperature

    def of_logits(self, student_BC: Tensor, teacher_BC: Tensor, batch: Batch) -> Tensor:
        return kd_loss(student_BC, teacher_BC, temperature=self.temperature)
