"""Uniform coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Reweighting


class Uniform(Reweighting):
    """Every sample weighs ``1 / B``, B the size of the global update batch: the plain mean."""

    def forward(self, loss_B: Tensor, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        return torch.full_like(loss_B, 1.0 / step.batch_size, requires_grad=False)
