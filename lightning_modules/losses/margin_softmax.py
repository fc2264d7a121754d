"""What the margin softmax losses share."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from kernels.margin_softmax import Kind, margin_softmax_loss
from lightning_modules.losses.pairs import refuse_values
from lightning_modules.losses.proxies import ProxyLoss
from lightning_modules.part import Context


class MarginSoftmax(ProxyLoss):
    """Cross-entropy over scaled cosines, that of the own class with a margin; see ``kernels.margin_softmax``.

    Args:
        scale: factor of the cosines.
        margin: in the units of the kind.
        **proxies: the keys of ``ProxyLoss``.
    """

    kind: Kind = "none"

    def __init__(
        self, *, scale: Annotated[float, "x > 0"], margin: Annotated[float, "x >= 0"] = 0.0, **proxies: Any
    ) -> None:
        super().__init__(**proxies)
        self.scale, self.margin = scale, margin

    def setup(self, context: Context) -> None:
        refuse_values(self.of_samples, torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
        super().setup(context)

    def of_samples(self, rows_BE: Tensor, labels_B: Tensor, weight_CE: Tensor) -> Tensor:
        return margin_softmax_loss(rows_BE, labels_B, weight_CE, kind=self.kind, margin=self.margin, scale=self.scale)
