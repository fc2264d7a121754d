"""Comp-sum losses: a function of the sum of exponentials, from the sum itself over cross-entropy to the mean error.

Mao, Mohri, Zhong. "Cross-Entropy Loss Functions: Theoretical Analysis and Applications". ICML 2023, arXiv 2304.07288.
Generalized cross-entropy: Zhang, Sabuncu. "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
Labels". NeurIPS 2018, arXiv 1805.07836.

Shape legend: B samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.margin_softmax import class_labels

#: Largest exponent: beyond it a loss with tau < 1 stays as it is, without a gradient.
MAX_EXPONENT = 50.0


def comp_sum(logits_BC: Tensor, label: Tensor, *, tau: float, rho: float = 1.0) -> Tensor:
    """``Phi_tau(u)`` of ``u = sum_{j != y} exp((z_j - z_y) / rho)``, which is ``1 / p_y - 1`` with p of ``z / rho``.

    ``Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau)``, and ``log(1 + u)`` for tau = 1. So tau = 0 is the sum of
    exponentials, 1 the cross-entropy, 1 < tau < 2 the generalized cross-entropy with q = tau - 1, and 2 is ``1 - p_y``.
    The gradient is ``p_y^(tau - 1) (p - onehot(y)) / rho``: tau < 1 boosts hard samples, tau > 1 damps them.

    Computed as ``-expm1((tau - 1) log p_y) / (tau - 1)``, which is exact to rounding for tau near 1 as well. With tau
    below 1, ``log p_y`` is clamped to ``-50 / (1 - tau)``: a sample beyond that has the largest loss and no gradient.

    Args:
        logits_BC: ``[B, C]``.
        label: ``[B]`` classes; or ``[B, C]`` soft labels, which average the losses of the classes.
        tau: from 0 on.
        rho: temperature of the logits, > 0.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: tau or rho out of range, labels that do not fit.

    Example:
        >>> [comp_sum(torch.zeros(1, 4), torch.tensor([2]), tau=tau) for tau in (0.0, 2.0)]
        [tensor([3.]), tensor([0.7500])]
    """
    if not 0 <= tau < torch.inf:
        raise ValueError(f"tau must be a number from 0 on, got {tau}")
    return _of_confidence(logits_BC, label, tau - 1, rho)


def generalized_cross_entropy(logits_BC: Tensor, label: Tensor, *, q: float) -> Tensor:
    """``(1 - p_y^q) / q``: cross-entropy for q = 0, ``1 - p_y`` (half the mean absolute error) for q = 1.

    Args:
        logits_BC: ``[B, C]``.
        label: ``[B]`` classes; or ``[B, C]`` soft labels, which average the losses of the classes.
        q: 0 <= q <= 1; labels that are often wrong want a large one.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: q out of range, labels that do not fit.

    Example:
        >>> generalized_cross_entropy(torch.zeros(1, 4), torch.tensor([2]), q=0.5)
        tensor([1.])
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be a number from 0 to 1, got {q}")
    return _of_confidence(logits_BC, label, q, rho=1.0)


def margin_shift(logits_clean_BC: Tensor, logits_adversarial_BC: Tensor, label: Tensor) -> Tensor:
    """``||D' - D||_2``, D the margins ``z_y - z_j`` of the clean logits over j != y, D' those of the adversarial ones.

    The second term of the smooth adversarial comp-sum loss, and what its attack raises. Nothing is detached. At equal
    logits it is 0 with a gradient of 0, so an attack has to start elsewhere.

    Args:
        logits_clean_BC: ``[B, C]``.
        logits_adversarial_BC: ``[B, C]``.
        label: ``[B]`` classes; or ``[B, C]`` soft labels, which average the values of the classes.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: shapes that differ, labels that do not fit.

    Example:
        >>> margin_shift(torch.zeros(1, 3), torch.tensor([[0.0, 3.0, 4.0]]), torch.tensor([0]))
        tensor([5.])
    """
    if logits_clean_BC.shape != logits_adversarial_BC.shape or logits_clean_BC.ndim != 2:
        raise ValueError(
            f"clean and adversarial logits must have one shape [B, C], got {list(logits_clean_BC.shape)} and "
            f"{list(logits_adversarial_BC.shape)}"
        )
    moved_BC = _wide(logits_adversarial_BC) - _wide(logits_clean_BC)
    moved_BC = moved_BC - moved_BC.mean(1, keepdim=True)
    # sum_j (m_y - m_j)^2 of centred m, for every y at once.
    square_BC = moved_BC.shape[1] * moved_BC.square() + moved_BC.square().sum(1, keepdim=True)
    at_zero_BC = square_BC == 0
    length_BC = square_BC.masked_fill(at_zero_BC, 1.0).sqrt().masked_fill(at_zero_BC, 0.0)
    return _of_label(length_BC, label)


def _of_confidence(logits_BC: Tensor, label: Tensor, power: float, rho: float) -> Tensor:
    """``(1 - p_y^power) / power``, and ``-log p_y`` where power is 0."""
    if not 0 < rho < torch.inf:
        raise ValueError(f"rho must be a positive number, got {rho}")
    log_p_BC = (_wide(logits_BC) / rho).log_softmax(1)
    if label.ndim == 1:  # of the one class of each sample, and not of all C
        log_p_BC = _of_label(log_p_BC, label)[:, None]
    # Below this the second term of the series is lost in rounding, and the product below might underflow.
    if abs(power) < torch.finfo(log_p_BC.dtype).eps ** 2:
        loss_BC = -log_p_BC
    else:
        exponent_BC = (power * log_p_BC).clamp(max=MAX_EXPONENT)
        # The derivative of expm1 is made of its value, which has rounded a small p_y^power away; that of exp is exact.
        small_BC = exponent_BC.clamp(max=0.0).exp() - 1
        loss_BC = torch.where(exponent_BC < -0.5, small_BC, exponent_BC.expm1()) / -power
    return loss_BC[:, 0] if label.ndim == 1 else _of_label(loss_BC, label)


def _of_label(values_BC: Tensor, label: Tensor) -> Tensor:
    """``[B]`` the value of the label's class, or the average under a soft label."""
    if label.ndim == 1:
        return values_BC.gather(1, class_labels(label, values_BC)[:, None])[:, 0]
    if label.shape != values_BC.shape:
        raise ValueError(
            f"labels of shape {list(label.shape)} for logits of shape {list(values_BC.shape)}; give [B] classes or "
            "[B, C] soft labels"
        )
    return (label.to(values_BC.dtype) * values_BC).sum(1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
