"""Standardized logits: distillation without a shared scale of the logits.

Sun, Ren, Li, Wang, Cao. "Logit Standardization in Knowledge Distillation". CVPR 2024, arXiv 2403.01427. Official code:
sunshangquan/logit-standardization-KD.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to the standard deviation.
EPS = 1e-7


def standardize_logits(logits: Tensor) -> Tensor:
    """Each row as a z-score, ``(z - mean(z)) / (std(z) + 1e-7)``, the variance being the sum of squares over C - 1.

    Use it before any distillation of logits, for student and teacher alike; the temperature divides the result. The
    student then has to match the teacher's logits up to their shift and scale. A row whose logits are all equal, to
    rounding, becomes zeros without gradient (the official code's there is 1e7 times the upstream one).

    Args:
        logits: ``[B, C]``.

    Returns:
        ``[B, C]`` in at least float32.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
        tensor([[-1.0000,  0.0000,  1.0000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    rows = centred(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    degrees = max(rows.shape[-1] - 1, 1)
    return rows / (torch.linalg.vector_norm(rows, dim=-1, keepdim=True) / degrees**0.5 + EPS)


def centred(rows: Tensor) -> Tensor:
    """Rows less their mean; zeros without gradient where rounding is all that is left."""
    less = rows - rows.mean(-1, keepdim=True)
    with torch.no_grad():
        left, whole = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (less, rows))
        flat = left <= 8 * torch.finfo(rows.dtype).eps * whole
    return less.masked_fill(flat, 0.0)
