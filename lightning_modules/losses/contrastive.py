"""Contrastive loss on pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from kernels import pair_form
from kernels.contrastive import contrastive_loss
from lightning_modules.losses.pairs import PairLoss


class Contrastive(PairLoss):
    """Draws pairs of one class together and pushes the others apart, up to a margin.

    Hadsell, Chopra, LeCun. "Dimensionality Reduction by Learning an Invariant Mapping". CVPR 2006. See
    ``kernels.contrastive`` for the variants.

    Args:
        distance: ``cosine``: ``1 - s`` and ``relu(s - neg_margin)``; ``l2``: ``d`` and ``relu(neg_margin - d)``, on
            embeddings of length 1.
        neg_margin: similarity, or distance, from which negatives cost nothing.
        over: ``sum`` over the pairs of an anchor; ``nonzero``, the mean over the pairs of the update that cost
            something, positives and negatives apart.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(
        self,
        *,
        distance: Literal["cosine", "l2"] = "cosine",
        neg_margin: Annotated[float, "-1 <= x <= 2"] = 0.5,
        over: Literal["sum", "nonzero"] = "sum",
        **memory: Any,
    ) -> None:
        super().__init__(**memory)
        self.keys: dict[str, Any] = {"distance": distance, "neg_margin": neg_margin, "over": over}
        # Only this variant is a sum over the pairs of an anchor, as mixed examples need it.
        self.pair_form = pair_form.contrastive(neg_margin) if distance == "cosine" and over == "sum" else None

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, **candidates: Any) -> Tensor:
        return contrastive_loss(rows_BE, labels_B, **self.keys, **candidates)
