"""DIST: the student's probabilities are to correlate with the teacher's, not to equal them.

Huang, You, Wang, Qian, Xu. "Knowledge Distillation from A Stronger Teacher". NeurIPS 2022, arXiv 2205.10536. Official
code: hunto/DIST_KD.

Shape legend: B samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.kd import softened
from kernels.logit_standardization import centred

#: Added to the product of two lengths.
EPS = 1e-8


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """``T^2 (beta inter + gamma intra)``; the teacher's logits are detached.

    With Y the student's probabilities ``softmax(z / T)`` and V the teacher's,

    - inter: 1 - mean over samples of the Pearson correlation of the rows ``Y[i, :]`` and ``V[i, :]``,
    - intra: 1 - mean over classes of that of the columns ``Y[:, c]`` and ``V[:, c]``.

    A row or column without spread correlates with nothing: 0, without gradient. Intra is a statistic of the batch and
    depends on its size, so this is one value; several processes give the rows of all of them.

    Args:
        student_logits: ``[B, C]``, B >= 1.
        teacher_logits: ``[B, C]``.
        temperature: T > 0.
        beta: weight of inter.
        gamma: weight of intra.

    Returns:
        A scalar from 0 to ``2 (beta + gamma) T^2``, in at least float32.

    Raises:
        ValueError: shapes that differ, no sample, or a temperature that is not positive.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> dist_loss(-logits, logits, temperature=1.0)
        tensor(4.)
    """
    z_BC, v_BC = softened(student_logits, teacher_logits, temperature)
    if not z_BC.numel():
        raise ValueError(f"logits of shape {list(z_BC.shape)} have nothing that could correlate; give a sample")
    Y, V = z_BC.softmax(1), v_BC.softmax(1)
    return temperature**2 * (beta * _unlikeness(Y, V) + gamma * _unlikeness(Y.T, V.T))


def _unlikeness(a: Tensor, b: Tensor) -> Tensor:
    """1 - the mean Pearson correlation of the rows."""
    a, b = centred(a), centred(b)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return 1 - ((a * b).sum(1) / (norms + EPS)).mean()
