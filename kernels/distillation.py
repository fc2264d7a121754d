"""Distillation of logits: what a student's logits cost beside the teacher's.

    kd_loss             [B]     KL of softened probabilities
    dkd_loss            [B]     the same, target class and other classes weighed apart
    binary_kl           [B]     KL of one sigmoid a class
    binary_kl_norm      [B]     log cosh of the difference of logits
    dist_loss           scalar  correlation of rows and of columns
    standardize_logits  [B, C]  z-scores, to be used before any of them

Each file of that name holds formula and source. The teacher's logits are always detached, and every loss has its factor
T^2: the gradient then keeps its size when the temperature changes.
"""

from __future__ import annotations

from kernels.binary_kl import binary_kl, binary_kl_norm
from kernels.dist import dist_loss
from kernels.dkd import dkd_loss
from kernels.kd import kd_loss
from kernels.logit_standardization import standardize_logits

__all__ = ["binary_kl", "binary_kl_norm", "dist_loss", "dkd_loss", "kd_loss", "standardize_logits"]
