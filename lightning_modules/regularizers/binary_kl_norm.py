"""The binary KL of normalized logits, the term of dual-head distillation.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD.
"""

from __future__ import annotations

from kernels.distillation import binary_kl_norm
from lightning_modules.regularizers.binary_kl import BinaryKL


class BinaryKLNorm(BinaryKL):
    """``weight * T^2 * sum_c log cosh((a_c - v_c) / (2 T))`` of the teacher's logits v and the student's a.

    Meant for ``head=dual`` and its auxiliary classifier: the paper reports that one which also learns from labels
    collapses.

    Args:
        temperature: T; 2 in the paper.
        reduction: over classes: ``sum`` as the paper does, so that the term grows with their number (weight 1 for 100
            classes, 0.1 for 1,000), or ``mean``.
        keys: ``weight``, ``head``, ``standardize``, ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see
            ``LogitDistilling``); the official ImageNet script stops at epoch 50.
    """

    kernel = staticmethod(binary_kl_norm)
