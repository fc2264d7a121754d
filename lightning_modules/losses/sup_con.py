"""Supervised contrastive loss."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from kernels.sup_con import sup_con_loss
from lightning_modules.losses.pairs import PairLoss


class SupCon(PairLoss):
    """Every positive must be found among all other samples; the mean of the logarithms stands outside (L_out).

    Khosla et al. "Supervised Contrastive Learning". NeurIPS 2020, arXiv 2004.11362. Positives are the samples of the
    class in the batch (``data.samples_per_class``). See ``kernels.sup_con``.

    Args:
        temperature: t; 0.1 on ImageNet.
        base_temperature: t0 of the official code, which multiplies by ``t / t0``; None leaves it out.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, "x > 0"] = 0.1,
        base_temperature: Annotated[float, "x > 0"] | None = 0.07,
        **memory: Any,
    ) -> None:
        super().__init__(**memory)
        self.keys: dict[str, Any] = {"temperature": temperature, "base_temperature": base_temperature}

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, *, anchors: int = 0, **candidates: Any) -> Tensor:
        return sup_con_loss(rows_BE, labels_B, **self.keys, **candidates)
