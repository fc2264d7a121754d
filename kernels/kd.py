"""Knowledge distillation: the student's softened class probabilities follow the teacher's.

Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network". 2015, arXiv 1503.02531.

Shape legend: B samples, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """``T^2 KL(softmax(v / T) || softmax(z / T))`` of the student's logits z and the teacher's v, which are detached.

    The gradient for z is ``T (softmax(z / T) - softmax(v / T))``. For large T it is the one of
    ``sum_c d_c^2 / (2C)``, d the difference of the logits once each row has mean zero.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        temperature: T > 0.

    Returns:
        ``[B]`` in at least float32; finite for any finite logits.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.

    Example:
        >>> kd_loss(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), temperature=2.0)
        tensor([1.3113])
    """
    z_BC, v_BC = softened(student_logits, teacher_logits, temperature)
    return temperature**2 * categorical_kl(z_BC, v_BC)


def categorical_kl(z_BC: Tensor, v_BC: Tensor) -> Tensor:
    """``[B]`` ``KL(softmax(v) || softmax(z))``; no probability is divided by."""
    log_p_BC = v_BC.log_softmax(1)
    return (log_p_BC.exp() * (log_p_BC - z_BC.log_softmax(1))).sum(1)


def softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both over the temperature, in the student's dtype or float32 if that is narrower; the teacher's detached.

    Raises:
        ValueError: shapes that are not one ``[B, C]``, or a temperature that is not positive.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise ValueError(
            f"logits of student and teacher must have one shape [B, C], got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}; both networks must know the same classes"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    return student_logits.to(dtype) / temperature, teacher_logits.detach().to(dtype) / temperature
