"""Relational knowledge distillation: distances and angles between the samples of a batch, whatever the width.

Park, Kim, Lu, Cho. "Relational Knowledge Distillation". CVPR 2019, arXiv 1904.05068. Official code: lenscloth/RKD.

Shape legend: B samples, S and D dimensions of student and teacher. Both losses are of the batch, so they are scalars;
several processes give the rows of all of them. The teacher is detached. Official weights: 25 for distances and 50 for
angles of features, 1 and 2 for embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from kernels.pairs import unit


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B^2 pairs of ``smooth_l1(d_ij / mean(d) - d'_ij / mean(d'))``, d the distances of the student.

    The mean is that of the positive distances and differentiated, so the scale of the student does not matter. Samples
    that coincide have no gradient between them.

    Args:
        student: ``[B, S]``.
        teacher: ``[B, D]``.

    Returns:
        A scalar in at least float32; 0 for one sample.

    Raises:
        ValueError: shapes that do not fit, or no sample.

    Example:
        >>> rkd_distance_loss(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [1.0]]))
        tensor(0.0972)
    """
    student, teacher = _rows(student, teacher)
    return smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B^3 triples of ``smooth_l1(cos_ijk - cos'_ijk)``, the cosine of the angle at j between i and k.

    ``cos_ijk = <u_ij, u_kj>`` with ``u_ij = (x_i - x_j) / ||x_i - x_j||``, and 0 without gradient where two of the
    three coincide. Neither scale nor shift of the student matters. Takes ``B^2 (S + D) + 2 B^3`` numbers of memory.

    Args:
        student: ``[B, S]``.
        teacher: ``[B, D]``.

    Returns:
        A scalar in at least float32; 0 for fewer than three samples.

    Raises:
        ValueError: shapes that do not fit, or no sample.

    Example:
        >>> rkd_angle_loss(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [-1.0]]))
        tensor(0.2222)
    """
    student, teacher = _rows(student, teacher)
    return smooth_l1_loss(_cosines(student), _cosines(teacher))


def _relative_distances(rows: Tensor) -> Tensor:
    """``[B, B]`` distances over the mean of those that are positive."""
    with torch.autocast(rows.device.type, enabled=False):
        # Of differences, not of products: no rounding between near rows, and no gradient between equal ones.
        distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / (distance > 0).sum().clamp_min(1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _cosines(rows: Tensor) -> Tensor:
    """``[B, B, B]``: at the first sample, between the two others."""
    with torch.autocast(rows.device.type, enabled=False):
        direction = unit(rows[None] - rows[:, None])
        return direction @ direction.mT


def _rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher) or not len(student):
        raise ValueError(
            f"student and teacher must be [B, S] and [B, D] of the same samples, at least one; got "
            f"{list(student.shape)} and {list(teacher.shape)}"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)
