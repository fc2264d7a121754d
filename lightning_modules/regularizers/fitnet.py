"""FitNet: the student's feature map, regressed on the teacher's.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio. "FitNets: Hints for Thin Deep Nets". ICLR 2015, arXiv 1412.6550. The
regressor and the joint training are those of megvii-research/mdistiller; the paper trains in two phases.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Context, Unsuited, split_view
from lightning_modules.precision import at_least_float32
from lightning_modules.regularizers.distilling import Distilling, at_home, drawn_apart
from lightning_modules.teaching.given import map_of, width_of


class FitNet(Distilling):
    """``weight * mean (regressor(F_s) - F_t)^2`` over the final map of each sample, the one that is pooled.

    The regressor is trained with the network and dropped with this part: it is in no exported file. Of maps
    ``[C, H, W]`` it is a convolution, batch norm of the batch (it keeps no running statistics, for it is used in
    training alone) and ReLU; of the tokens of transformers ``[N, D]`` a linear map of each token.

    Args:
        weight: 100 in the papers that compare with it.
        keys: ``warmup_epochs``, ``stop_epoch``, ``teacher``, ``view`` (see ``Distilling``).
    """

    regressor: nn.Module

    def __init__(self, *, weight: Annotated[float, "x >= 0"] = 100.0, **keys: Any) -> None:
        super().__init__(weight=weight, **keys)
        self.maps = ("final",) if weight > 0 else ()
        self.width = self.teacher_width = 0

    def begin_with(self, context: Context, teacher: Any) -> None:
        """Look at one map of each network and make the regressor between them."""
        super().begin_with(context, teacher)
        if context.image_size is None:
            raise Unsuited("the shape of maps depends on that of images: give Context(image_size=...), in pixels")
        student: Any = context.network_of(split_view(self.view)[0])
        self.width, self.teacher_width = width_of(student), width_of(teacher)
        shapes = []
        for network, width in ((student, self.width), (teacher, self.teacher_width)):
            try:
                found = map_of(network, student.in_channels, context.image_size)
            except TypeError as error:  # a backbone with several maps
                raise Unsuited(str(error)) from error
            shapes.append(_channels_first(found, width).shape[1:])
        with drawn_apart(context.seed, "fitnet"):  # the numbers of the network stay those of the run without it
            self.regressor = regressor(*shapes)

    def term(self, student: Output, teacher: Output, batch: Batch, step: Step) -> Tensor:
        student_map = _channels_first(student.maps["final"], self.width)
        target = at_least_float32(_channels_first(teacher.maps["final"], self.teacher_width).detach())
        if not len(batch):
            return student_map.flatten(1).sum(1)
        found = self.regressor(at_home(self.regressor, student_map))
        return (at_least_float32(found) - target).square().flatten(1).mean(1)


def regressor(student: torch.Size, teacher: torch.Size) -> nn.Module:
    """From a map of one shape to one of another.

    Args:
        student: ``[C, H, W]``, or ``[N, D]`` of tokens.
        teacher: likewise.

    Raises:
        Unsuited: shapes between which the method has no regressor.
    """
    came = f"the final map of the student is {list(student)} and that of the teacher {list(teacher)}"
    if len(student) != len(teacher):
        raise Unsuited(
            f"{came}: one is of tokens and one of pixels, between which it has no regressor; take a term of features "
            "or logits (rkd, crd, kd), or networks of one kind"
        )
    if len(student) == 2:
        if student[0] != teacher[0]:
            raise Unsuited(
                f"{came}: tokens are compared one by one, and there are {student[0]} and {teacher[0]}; take networks "
                "with the same patches, or a term of features or logits (rkd, crd, kd)"
            )
        return nn.Linear(student[1], teacher[1])
    (channels, *side), (teacher_channels, *teacher_side) = student, teacher
    conv: nn.Module
    if all(s == 2 * t for s, t in zip(side, teacher_side, strict=True)):
        conv = nn.Conv2d(channels, teacher_channels, 3, stride=2, padding=1)
    elif all(2 * s == t for s, t in zip(side, teacher_side, strict=True)):
        conv = nn.ConvTranspose2d(channels, teacher_channels, 4, stride=2, padding=1)
    elif all(s >= t for s, t in zip(side, teacher_side, strict=True)):
        kernel = tuple(1 + s - t for s, t in zip(side, teacher_side, strict=True))
        conv = nn.Conv2d(channels, teacher_channels, (kernel[0], kernel[1]))
    else:
        raise Unsuited(
            f"{came}: its regressor reaches maps that are smaller, as large, or twice as large as the student's; set "
            "teaching.image_size to a smaller side, or take a term of features or logits (rkd, crd, kd)"
        )
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels, track_running_stats=False), nn.ReLU())


def _channels_first(feature_map: Tensor, width: int) -> Tensor:
    """``[B, C, H, W]``, also where a transformer gives ``[B, H, W, C]``; ``[B, N, D]`` of tokens as it is."""
    if feature_map.ndim == 4 and feature_map.shape[1] != width and feature_map.shape[-1] == width:
        return feature_map.permute(0, 3, 1, 2)
    return feature_map
