"""Relational knowledge distillation.

Park, Kim, Lu, Cho. "Relational Knowledge Distillation". CVPR 2019, arXiv 1904.05068. Official code: lenscloth/RKD.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from kernels.batch import Batch, Output, Step
from kernels.pairs import unit
from kernels.rkd import rkd_angle_loss, rkd_distance_loss
from lightning_modules.regularizers.distilling import Distilling


class RKD(Distilling):
    """``weight * (distance_weight * distance + angle_weight * angle)`` of the samples of an update among themselves.

    Distances, in units of their mean, and angles of triples are to be those of the teacher; the widths of the two may
    differ, and neither class nor label plays a part. Both are of the whole update: the rows of all processes are
    gathered, and micro-batches are refused. Angles take ``2 B^3`` numbers of memory, B over all processes: 17 MB in
    float32 for 128 samples, 1 GB for 512.

    Args:
        distance_weight: of distances; the official code has 25 for features, 1 for embeddings.
        angle_weight: of angles; 50 for features, 2 for embeddings.
        of: what of the student learns: ``features``, before the head, or the ``embedding`` of a head that gives one.
        teacher_of: what of the teacher it learns from; None for the same.
        normalize: bring rows to length 1 first: ``none``; ``teacher``, as the official code does with embeddings; or
            ``both``.
        keys: ``weight``, ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see ``Distilling``).
    """

    per_sample = False

    def __init__(
        self,
        *,
        distance_weight: Annotated[float, "x >= 0"] = 25.0,
        angle_weight: Annotated[float, "x >= 0"] = 50.0,
        of: Literal["features", "embedding"] = "features",
        teacher_of: Literal["features", "embedding"] | None = None,
        normalize: Literal["none", "teacher", "both"] = "none",
        **keys: Any,
    ) -> None:
        super().__init__(**keys)
        self.distance_weight, self.angle_weight, self.normalize = distance_weight, angle_weight, normalize
        self.of, self.teacher_of = of, teacher_of or of
        self.reads_of_teacher = frozenset({self.teacher_of})
        if self.teacher_of == "embedding":
            self.otherwise = "set teacher_of=features, which every single network gives"
        self.needs = frozenset({"embedding"} if of == "embedding" else ())  # type: ignore[misc]

    def term(self, student: Output, teacher: Output, batch: Batch, step: Step) -> Tensor:
        student_BS, teacher_BD = self.rows(getattr(student, self.of), getattr(teacher, self.teacher_of), step)
        if not len(student_BS):
            return student_BS.sum()
        if self.normalize != "none":
            teacher_BD = unit(teacher_BD)
        if self.normalize == "both":
            student_BS = unit(student_BS)
        total = self.distance_weight * rkd_distance_loss(student_BS, teacher_BD)
        if self.angle_weight > 0:
            total = total + self.angle_weight * rkd_angle_loss(student_BS, teacher_BD)
        return total
