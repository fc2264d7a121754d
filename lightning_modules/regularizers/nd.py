"""ND: features turn towards the class means of the teacher and grow to the norm of the teacher's.

Wang, Cheng, Duan, Wang, Feng, Kong. "Improving Knowledge Distillation via Regularizing Feature Direction and Norm".
ECCV 2024, arXiv 2305.17007. Official code: WangYZ1608/Knowledge-Distillation-via-ND.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step, Update
from kernels.nd import nd_loss
from kernels.pairs import SHORTEST
from lightning_modules.class_means import KeptMeans
from lightning_modules.distributed import processes, total_over_processes
from lightning_modules.frozen import Frozen
from lightning_modules.part import Context, TrainingData, split_view
from lightning_modules.regularizers.distilling import Distilling
from lightning_modules.regularizers.projector import Projector


class ND(Distilling):
    """``weight * (1 - <s, e_y> / max(||s||, ||t||))`` of features s and the norm of the teacher's t.

    ``e_y`` is the direction of the teacher's class mean, taken once over the training images without augmentation, with
    the labels of training. A student of another width learns through a projector. Of the teacher's output only the norm
    of the features is read, so that a cache of one number an image is enough. Beside KD it makes KD++, beside DKD
    DKD++.

    Args:
        direction_only: ``1 - cos(s, e_y)``, an ablation of the paper.
        norm_only: ``1 - ||s|| / max(||s||, ||t||)``, the other one.
        norm: False is ``1 - cos(s, e_y)`` as well, for heads that normalize the features.
        keys: ``weight``, ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see ``Distilling``). The paper has
            weights of 0.5 to 4.

    Raises:
        ValueError: keys that leave nothing; a teacher without features, or one that changes.
    """

    reads_of_teacher = frozenset({"norms"})

    def __init__(
        self, *, direction_only: bool = False, norm_only: bool = False, norm: bool = True, **keys: Any
    ) -> None:
        super().__init__(**keys)
        if norm_only and (direction_only or not norm):
            raise ValueError(
                "norm_only leaves out the direction, and direction_only and norm=false the norm, so that nothing would "
                "be left; choose one"
            )
        self.form = {"direction_only": direction_only, "norm_only": norm_only, "norm": norm}
        self.means: KeptMeans | None = None
        self.projector: Projector | None = None
        self.geometry = Geometry()

    def begin_with(self, context: Context, teacher: Any) -> None:
        name = split_view(self.teacher)[0]
        if not (isinstance(teacher, Frozen) and teacher.checked):
            raise ValueError(
                f"nd takes the class means of {name!r} once, and that network changes in training; let teacher= name "
                "one that stays as it is, and set regularizer.nd.teacher=teacher/main"
            )
        width: Any = getattr(teacher if hasattr(teacher, "num_features") else teacher.network, "num_features")  # noqa: B009
        if width is None:
            raise ValueError(
                "nd reads the features of one teacher, and several have no features in common; name one with "
                "teacher=REFERENCE, or leave nd out"
            )
        student: Any = context.network_of(split_view(self.view)[0])
        like = next(student.parameters())
        self.means = KeptMeans(teacher, context.num_classes, width, context.data_key).to(like.device)
        if student.num_features != width:
            self.projector = Projector(student.num_features, width, like)

    def prepare(self, data: TrainingData) -> None:
        if self.means is not None:
            self.means.prepare(data.batches(), data.device)

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor | None:
        value = super().forward(outputs, batch, step)
        if value is None and self.projector is not None and processes()[1] > 1:
            # Off for this epoch: processes wait for a gradient of every trained parameter.
            value = sum((0 * p).sum() for p in self.projector.parameters())  # type: ignore[assignment]
        return value

    def term(self, student: Output, teacher: Output, batch: Batch, step: Step) -> Tensor:
        means = self._means()
        means.check(batch.label)
        features_BD = _features(student)
        s_BD = features_BD if self.projector is None else self.projector(features_BD)
        return nd_loss(s_BD, _with_norms(teacher, s_BD), means.means, batch.label, **self.form)

    def _means(self) -> KeptMeans:
        if self.means is None:
            raise ValueError("nd has no class means: call setup(context), then prepare(data), before the first update")
        return self.means

    def commit(self, result: Update, step: Step) -> None:
        super().commit(result, step)
        if self.weight_at(step.epoch) > 0:
            features_BD = _features(result.outputs[self.view])
            s_BD = features_BD if self.projector is None else self.projector.at_rest(features_BD)
            t_BD = _with_norms(result.outputs[self.teacher], s_BD)
            self.geometry.add(s_BD, t_BD, self._means().means, result.batch.label)

    def end_epoch(self) -> dict[str, float]:
        """The epoch's means of the term, of the cosine to the class mean, and of ``||s|| / ||t||``."""
        return super().end_epoch() | self.geometry.read()

    def report(self) -> dict[str, float]:
        """As every term; widths of the projector, where there is one."""
        if self.projector is None:
            return super().report()
        linear = self.projector.linear
        return super().report() | {"projector_in": linear.in_features, "projector_out": linear.out_features}

    def files(self, folder: Path) -> None:
        """class_means.safetensors, for ``class_means.load_class_means``."""
        if self.means is not None:
            self.means.save(folder / "class_means.safetensors")


class Geometry(nn.Module):
    """Sums of an epoch over the samples of this process: cosines to the class mean, ratios of norms, and counts."""

    differs_between_processes = True

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(4, dtype=torch.float64))

    @torch.no_grad()
    def add(self, s_BD: Tensor, t_BD: Tensor, means_CD: Tensor, labels: Tensor) -> None:
        """Take an update in; a teacher's feature of zero has no ratio."""
        cosine_B = 1 - nd_loss(s_BD, t_BD, means_CD, labels, direction_only=True)
        ns_B, nt_B = (torch.linalg.vector_norm(rows.to(cosine_B.dtype), dim=1) for rows in (s_BD, t_BD))
        there_B = nt_B > SHORTEST
        ratio_B = (ns_B / nt_B).where(there_B, 0.0)
        values = (cosine_B, ratio_B, torch.ones_like(cosine_B), there_B)
        self.sums += torch.stack([value.sum(dtype=torch.float64) for value in values])

    def read(self) -> dict[str, float]:
        """Means over the samples of all processes; resets the epoch."""
        cosine, ratio, samples, there = total_over_processes(self.sums).tolist()
        self.sums.zero_()
        return {"cosine": cosine / max(samples, 1), "norm_ratio": ratio / max(there, 1)}


def _features(output: Output) -> Tensor:
    """``[B, D]``, pooled, before any mask of a head."""
    if output.features is None:
        raise ValueError("nd reads pooled features, and the network's output has none; take a network that gives them")
    return output.features


def _with_norms(teacher: Output, s_BD: Tensor) -> Tensor:
    """The teacher's features, or rows as long as they are, where only their norms are known."""
    if teacher.features is not None:
        return teacher.features
    norm_B = teacher.auxiliary.get("feature_norm")
    if norm_B is None:
        raise ValueError(
            "nd reads features of the teacher or their norms (auxiliary['feature_norm']), and its output has neither; "
            "take a single teacher that gives its pooled features"
        )
    rows_BD = norm_B.new_zeros(s_BD.shape)
    rows_BD[:, 0] = norm_B
    return rows_BD
