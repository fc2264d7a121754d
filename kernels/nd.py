"""ND loss: features turn towards the class means of the teacher and grow to the norm of the teacher's.

Wang, Cheng, Duan, Wang, Feng, Kong. "Improving Knowledge Distillation via Regularizing Feature Direction and Norm".
ECCV 2024, arXiv 2305.17007. Official code: WangYZ1608/Knowledge-Distillation-via-ND.

Shape legend: B samples, C classes, D dimensions of the teacher's features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.margin_softmax import class_labels
from kernels.pairs import SHORTEST, lengths


def nd_loss(
    student: Tensor,
    teacher: Tensor,
    class_means: Tensor,
    labels: Tensor,
    *,
    direction_only: bool = False,
    norm_only: bool = False,
    norm: bool = True,
) -> Tensor:
    """``1 - <s, e_y> / max(||s||, ||t||)``, in [0, 2], with ``e_y = c_y / ||c_y||`` the direction of the class mean.

    Teacher and means are detached; the student's norm in the denominator is not. So the gradient for s is
    ``-e_y / ||t||`` while the student is the shorter one, and from equal norms on it is a pure rotation,
    ``-(e_y - <s, e_y> s / ||s||^2) / ||s||``. Where both features are zero there is none.

    Args:
        student: ``[B, D]`` s, behind a projector where the widths differ.
        teacher: ``[B, D]`` t of the same images.
        class_means: ``[C, D]`` c; see ``kernels.class_means``. Those of labels that occur must be finite and not zero:
            a mean of zeros costs 1 without gradient. To align with the teacher's feature instead of the mean, give
            ``teacher`` here and ``torch.arange(B)`` as labels.
        labels: ``[B]`` classes; or ``[B, C]`` soft labels of mixed images (mixed like these, smoothed or not), whose
            center is ``labels @ class_means``.
        direction_only: ``1 - cos(s, e_y)``; the paper's ablation.
        norm_only: ``1 - ||s|| / max(||s||, ||t||)``, which is the loss of a student that has the direction already.
        norm: False is ``1 - cos(s, e_y)`` as well, for heads that normalize the features.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: shapes that do not fit, labels that are neither classes nor soft labels, both halves left out.

    Example:
        >>> means, labels = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> nd_loss(torch.tensor([[5.0, 0.0], [3.0, 0.0]]), torch.ones(2, 2), means, labels)
        tensor([0., 1.])
    """
    if norm_only and (direction_only or not norm):
        raise ValueError("norm_only leaves out the direction, and direction_only and norm=False the norm; choose one")
    _check(student, teacher, class_means)
    dtype = torch.promote_types(student.dtype, torch.float32)
    s_BD, t_BD = student.to(dtype), teacher.detach().to(dtype)
    if norm_only:
        return 1 - (_norms(s_BD) / _larger(s_BD, t_BD))[:, 0]
    center_BD = _centers(class_means.detach(), labels, s_BD)
    along_B1 = (s_BD * center_BD).sum(1, keepdim=True) / lengths(center_BD)
    return 1 - (along_B1 / (lengths(s_BD) if direction_only or not norm else _larger(s_BD, t_BD)))[:, 0]


def _larger(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """``[B, 1]`` the larger norm, the student's where they are equal; infinite where both are zero."""
    ns_B1, nt_B1 = _norms(s_BD), _norms(t_BD)
    larger_B1 = torch.where(ns_B1 >= nt_B1, ns_B1, nt_B1)  # torch.maximum would share the gradient of a tie
    return larger_B1.masked_fill(larger_B1 <= SHORTEST, torch.inf)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _centers(class_means_CD: Tensor, labels: Tensor, s_BD: Tensor) -> Tensor:
    """``[B, D]`` the mean of each sample's class, or the mixture of means under a soft label."""
    if labels.ndim == 1:
        return class_means_CD[class_labels(labels, s_BD)].to(s_BD.dtype)
    if labels.shape != (len(s_BD), len(class_means_CD)):
        raise ValueError(
            f"labels of shape {list(labels.shape)} for {len(s_BD)} features and {len(class_means_CD)} class means; "
            "give [B] classes or [B, C] soft labels"
        )
    with torch.autocast(s_BD.device.type, enabled=False):
        return labels.detach().to(s_BD.dtype) @ class_means_CD.to(s_BD.dtype)


def _check(student: Tensor, teacher: Tensor, class_means: Tensor) -> None:
    if student.ndim != 2 or teacher.shape != student.shape or class_means.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"student, teacher and class means must be [B, D], [B, D] and [C, D], got {list(student.shape)}, "
            f"{list(teacher.shape)} and {list(class_means.shape)}; a student of another width needs a projector"
        )
