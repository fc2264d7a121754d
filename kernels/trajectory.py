"""Trajectory divergence of SAF and MESA.

Du, Zhou, Feng, Tan, Zhou. "Sharpness-Aware Training for Free". NeurIPS 2022, arXiv 2205.14083.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def trajectory_kl(logits_BC: Tensor, past_logits_BC: Tensor, temperature: float, *, scale: bool = True) -> Tensor:
    """Divergence of the current prediction from a past one, for each sample.

    ``tau^2 * KL(softmax(past / tau) || softmax(current / tau))``, summed over classes. The past is data: no
    gradient reaches it. The gradient with respect to the current logits is ``tau * (q - p)``, p the past and q the
    current distribution. Computed with ``log_softmax`` (finite for any finite logits) in at least float32.

    Args:
        logits_BC: current logits ``[B, C]``.
        past_logits_BC: reference logits ``[B, C]``, any floating dtype.
        temperature: tau > 0.
        scale: multiply by tau^2, as the official code does and the printed formula does not; it makes the strength
            almost independent of tau. Off, the loss at tau = 5 is 25 times weaker.

    Returns:
        ``[B]`` non-negative, in float32 or the wider of the two input types.

    Raises:
        ValueError: temperature not positive, or shapes that differ.

    Example:
        >>> trajectory_kl(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=5.0)
        tensor([0.])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if logits_BC.shape != past_logits_BC.shape:
        raise ValueError(
            f"logits and past logits must have the same shape [B, C], got {tuple(logits_BC.shape)} and "
            f"{tuple(past_logits_BC.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(logits_BC.dtype, past_logits_BC.dtype), torch.float32)
    log_q = log_softmax(logits_BC.to(dtype) / temperature, dim=-1)
    log_p = log_softmax(past_logits_BC.detach().to(dtype) / temperature, dim=-1)
    kl_B = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return temperature**2 * kl_B if scale else kl_B
