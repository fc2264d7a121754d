"""Decoupled knowledge distillation: the target class and the order of the others are weighed apart.

Zhao, Cui, Song, Qiu, Liang. "Decoupled Knowledge Distillation". CVPR 2022, arXiv 2203.08679. Official code:
megvii-research/mdistiller.

Shape legend: B samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.binary_kl import bernoulli_kl
from kernels.kd import categorical_kl, softened
from kernels.margin_softmax import class_labels


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """``alpha TCKD + beta NCKD``; the teacher's logits are detached.

    With the probabilities p of teacher and q of student at temperature T, and p^, q^ those of the C - 1 classes that
    are not the label y, each summing to 1:

        TCKD = T^2 KL([p_y, 1 - p_y] || [q_y, 1 - q_y]),    NCKD = T^2 KL(p^ || q^),    KD = TCKD + (1 - p_y) NCKD

    ``p_y = sigmoid(z_y - logsumexp of the others)``, so TCKD is the KL of two logits, and the column of the label is
    left out, not masked by a large number: both are finite where a probability underflows. With two classes NCKD is 0.

    Args:
        student_logits: ``[B, C]``, C >= 2.
        teacher_logits: ``[B, C]``.
        labels: ``[B]`` classes.
        alpha: weight of TCKD; 1 in the paper.
        beta: weight of NCKD; 2 to 8 in the paper for CIFAR-100, 0.5 to 2 for ImageNet.
        temperature: T > 0.

    Returns:
        ``[B]`` in at least float32; finite for any finite logits.

    Raises:
        ValueError: shapes that differ, labels that are no classes, a single class, a temperature that is not positive.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]])
        >>> dkd_loss(student, teacher, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=1.0)
        tensor([1.1166])
    """
    z_BC, v_BC = softened(student_logits, teacher_logits, temperature)
    labels_B1 = class_labels(labels, z_BC)[:, None]
    if z_BC.shape[1] < 2:
        raise ValueError(f"logits of shape {list(z_BC.shape)}; another class is needed, so give at least two")
    column = torch.arange(z_BC.shape[1] - 1, device=z_BC.device)
    others = column + (column >= labels_B1)  # [B, C - 1]: by index, since a mask would wait for the device
    z_others, v_others = z_BC.gather(1, others), v_BC.gather(1, others)
    z_B, v_B = (x.gather(1, labels_B1)[:, 0] - rest.logsumexp(1) for x, rest in ((z_BC, z_others), (v_BC, v_others)))
    return temperature**2 * (alpha * bernoulli_kl(z_B, v_B) + beta * categorical_kl(z_others, v_others))
