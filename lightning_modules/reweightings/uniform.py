"""Uniform coefficients."""

from __future__ import annotations

from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Reweighting


class Uniform(Reweighting):
    """Names no term: every sample weighs ``1 / B``, B the size of the global update batch, which is the plain mean."""

    def forward(
        self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step
    ) -> dict[str, Tensor]:
        return {}
