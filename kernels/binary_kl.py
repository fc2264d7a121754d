"""Distillation of logits one class at a time, for a head of its own.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD.

Shape legend: B samples, C classes. Sums over classes; the mean over samples, as in the official code, is the caller's.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kernels.kd import softened


def binary_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """BinaryKL: ``T^2 sum_c [p log(p / q) + (1 - p) log((1 - p) / (1 - q))]``, ``p = sigmoid(v / T)`` of the teacher.

    ``q = sigmoid(a / T)`` is the student's; v is detached. The gradient for a is ``T (q - p)``: each class is a problem
    of its own, and a shift of all logits counts.

    Args:
        student_logits: ``[B, C]`` a.
        teacher_logits: ``[B, C]`` v.
        temperature: T > 0.

    Returns:
        ``[B]`` in at least float32, a sum over the classes; finite for any finite logits.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.

    Example:
        >>> binary_kl(torch.zeros(1, 2), torch.tensor([[2.0, -2.0]]), temperature=1.0)
        tensor([0.6556])
    """
    a_BC, v_BC = softened(student_logits, teacher_logits, temperature)
    return temperature**2 * bernoulli_kl(a_BC, v_BC).sum(1)


def binary_kl_norm(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """BinaryKL-Norm: ``T^2 sum_c log cosh((a - v) / (2T))``; the teacher's v is detached.

    It is the binary KL between 1/2 and ``sigmoid((a - v) / T)`` in closed form. The gradient for a is
    ``T / 2 tanh((a - v) / (2T))``: that of ``(a - v)^2 / 8`` for small differences, at most ``T / 2`` for large ones.
    The official code clamps the sigmoid, which stops the gradient beyond ``|a - v| = 18.4 T``; this one goes on.

    Args:
        student_logits: ``[B, C]`` a.
        teacher_logits: ``[B, C]`` v.
        temperature: T > 0.

    Returns:
        ``[B]`` in at least float32, a sum over the classes; finite for any finite logits.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.

    Example:
        >>> binary_kl_norm(torch.zeros(1, 2), torch.tensor([[4.0, -4.0]]), temperature=1.0)
        tensor([2.6500])
    """
    a_BC, v_BC = softened(student_logits, teacher_logits, temperature)
    return temperature**2 * log_cosh((a_BC - v_BC) / 2).sum(1)


def bernoulli_kl(a: Tensor, v: Tensor) -> Tensor:
    """``KL(sigmoid(v) || sigmoid(a))`` element by element, from both logarithms of a sigmoid, which never are -inf."""
    true = v.sigmoid() * (logsigmoid(v) - logsigmoid(a))
    return true + (-v).sigmoid() * (logsigmoid(-v) - logsigmoid(-a))


def log_cosh(u: Tensor) -> Tensor:
    """``log cosh u``, exact to rounding of the value and its gradient near 0 as well as far away.

    ``|u| + log1p(exp(-2|u|)) - log 2`` cannot overflow but loses ``u^2 / 2`` in the rounding of log 2, which a large
    T^2 would make visible; ``log1p(sinh(u)^2) / 2`` is the reverse.
    """
    is_near = u.abs() < 1
    near, far = torch.where(is_near, u, 0.0), torch.where(is_near, 1.0, u.abs())
    return torch.where(is_near, near.sinh().square().log1p() / 2, far + (-2 * far).exp().log1p() - log(2))
