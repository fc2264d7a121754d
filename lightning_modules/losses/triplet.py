"""Triplet loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from kernels.triplet import triplet_loss
from lightning_modules.losses.pairs import PairLoss


class Triplet(PairLoss):
    """``relu(d(a, p) - d(a, n) + margin)``: a positive nearer than a negative, by a margin.

    Schroff, Kalenichenko, Philbin. "FaceNet". CVPR 2015, arXiv 1503.03832 (semi-hard). Hermans, Beyer, Leibe. "In
    Defense of the Triplet Loss". 2017, arXiv 1703.07737 (hard, soft margin).

    Args:
        margin: None for the soft margin ``log(1 + exp(d(a, p) - d(a, n)))``.
        mining: ``all`` triplets; for each positive the nearest negative that is farther (``semi_hard``); the farthest
            positive with the nearest negative (``hard``).
        distance: ``l2``, ``squared_l2`` or ``cosine`` (``1 - s``), on embeddings of length 1.
        over: ``mean`` over the triplets of an anchor; ``nonzero``, over those of the update that cost something.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(
        self,
        *,
        margin: Annotated[float, "x >= 0"] | None = 0.2,
        mining: Literal["all", "semi_hard", "hard"] = "semi_hard",
        distance: Literal["l2", "squared_l2", "cosine"] = "l2",
        over: Literal["mean", "nonzero"] = "mean",
        **memory: Any,
    ) -> None:
        super().__init__(**memory)
        self.keys: dict[str, Any] = {"margin": margin, "mining": mining, "distance": distance, "over": over}

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, **candidates: Any) -> Tensor:
        return triplet_loss(rows_BE, labels_B, **self.keys, **candidates)
