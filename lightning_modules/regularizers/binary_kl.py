"""The binary KL of logits, one class at a time.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from kernels.batch import Batch
from kernels.distillation import binary_kl
from lightning_modules.regularizers.distilling import LogitDistilling


class BinaryKL(LogitDistilling):
    """``weight * T^2 * sum_c KL(sigmoid(v_c / T) || sigmoid(a_c / T))`` of the teacher's logits v and the student's a.

    What ``BinaryKLNorm`` is compared with. Meant for ``head=dual`` and its auxiliary classifier: the paper reports that
    one which also learns from labels collapses (docs/distillation.md has what came of it here).

    Args:
        temperature: T; 2 in the paper.
        reduction: over classes: ``sum`` as the paper does, so that the term grows with their number, or ``mean``.
        keys: ``weight``, ``head``, ``standardize``, ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see
            ``LogitDistilling``).
    """

    kernel = staticmethod(binary_kl)

    def __init__(
        self,
        *,
        temperature: Annotated[float, "x > 0"] = 2.0,
        reduction: Literal["sum", "mean"] = "sum",
        **keys: Any,
    ) -> None:
        super().__init__(**keys)
        self.temperature, self.reduction = temperature, reduction

    def of_logits(self, student_BC: Tensor, teacher_BC: Tensor, batch: Batch) -> Tensor:
        term_B = self.kernel(student_BC, teacher_BC, temperature=self.temperature)
        return term_B / student_BC.shape[1] if self.reduction == "mean" else term_B
