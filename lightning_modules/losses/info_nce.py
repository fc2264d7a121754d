"""InfoNCE, which is NT-Xent with classes in place of instances."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from kernels.info_nce import info_nce_loss
from lightning_modules.losses.pairs import PairLoss


class InfoNCE(PairLoss):
    """Every positive must be found among the negatives of its anchor.

    van den Oord, Li, Vinyals. "Representation Learning with Contrastive Predictive Coding". 2018, arXiv 1807.03748.
    Sohn, NIPS 2016. Hard variant: Wang, Liu. "Understanding the Behaviour of Contrastive Loss". CVPR 2021, arXiv
    2012.09740. See ``kernels.info_nce``.

    Args:
        temperature: small ones look at the hardest negatives only.
        hard_fraction: share of the negatives of each anchor that are kept, the most similar ones; useful from
            temperatures of about 0.3 up.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, "x > 0"] = 0.1,
        hard_fraction: Annotated[float, "0 < x <= 1"] = 1.0,
        **memory: Any,
    ) -> None:
        super().__init__(**memory)
        self.keys: dict[str, Any] = {"temperature": temperature, "hard_fraction": hard_fraction}

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, *, anchors: int = 0, **candidates: Any) -> Tensor:
        return info_nce_loss(rows_BE, labels_B, **self.keys, **candidates)
