"""Weight standardization.

Qiao, Wang, Liu, Shen, Yuille. "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization".
2019, arXiv 1903.10520.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


def standardize_weight(
    weight: Tensor, *, eps: float = 1e-6, ddof: int = 0, eps_mode: Literal["inside", "added"] = "inside"
) -> Tensor:
    """Every output filter with mean 0 and spread 1: ``(w - mean) / s`` over its ``n`` weights.

    ``s = sqrt(sum (w - mean)^2 / (n - ddof) + eps)``, or ``sqrt(sum (w - mean)^2 / (n - ddof)) + eps`` with
    ``eps_mode="added"``. The gradient flows through mean and spread. Computed in at least float32; a weight in
    channels_last stays in it.

    | convention | eps | ddof | eps_mode |
    |---|---|---|---|
    | timm (the default), BiT (eps 1e-10) | 1e-6 | 0 | inside |
    | official classification, detection and segmentation code | 1e-5 | 1 | added |
    | official ImageNet code of batch-channel normalization | 1e-5 | 1 | inside |
    | official TensorFlow snippet | 1e-5 | 0 | added |

    Args:
        weight: ``[O, I / groups, kH, kW]``, or any shape whose first dimension counts the filters.
        eps: not negative; with 0 a constant filter has no standardized form.
        ddof: what is subtracted from ``n`` in the variance, 0 or 1.
        eps_mode: where ``eps`` stands.

    Returns:
        A tensor of the shape and dtype of ``weight``.

    Raises:
        ValueError: filters of fewer than two weights, a negative eps, another ddof or mode.

    Example:
        >>> standardize_weight(torch.tensor([[1.0, 3.0]]), eps=0.0)
        tensor([[-1.,  1.]])
    """
    _check(weight, eps, ddof, eps_mode)
    last = _is_channels_last(weight)
    ordered = weight.permute(0, 2, 3, 1) if last else weight
    rows_ON = ordered.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    n = rows_ON.shape[1]
    share = (n - ddof) / n
    if eps_mode == "inside":  # one kernel forward and one backward; ddof is a factor on both sides of the root
        rows_ON = layer_norm(rows_ON, (n,), eps=eps * share)
        rows_ON = rows_ON if ddof == 0 else rows_ON * math.sqrt(share)
    else:
        rows_ON = _eps_added(rows_ON, eps, share)
    standardized = rows_ON.to(weight.dtype).view(ordered.shape)
    return standardized.permute(0, 3, 1, 2) if last else standardized


def _eps_added(rows_ON: Tensor, eps: float, share: float) -> Tensor:
    centred_ON = rows_ON - rows_ON.mean(dim=1, keepdim=True)
    variance_O1 = centred_ON.square().mean(dim=1, keepdim=True) / share
    # Of a constant filter the root has no derivative; below the smallest normal number it is taken as 0.
    return centred_ON / (variance_O1.clamp_min(torch.finfo(rows_ON.dtype).tiny).sqrt() + eps)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _check(weight: Tensor, eps: float, ddof: int, eps_mode: str) -> None:
    if weight.ndim < 2 or weight[0].numel() < 2:
        raise ValueError(
            f"a weight of shape {list(weight.shape)} has filters of fewer than two weights, which have no spread; "
            "standardize only layers with a fan-in of at least 2"
        )
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    if eps_mode not in ("inside", "added"):
        raise ValueError(f"eps_mode must be 'inside' or 'added', got {eps_mode!r}")
