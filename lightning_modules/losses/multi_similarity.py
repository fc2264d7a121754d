"""Multi-Similarity loss."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from kernels import pair_form
from kernels.mixed_pairs import MixedPairs
from kernels.multi_similarity import mine, multi_similarity_loss
from kernels.pairs import pair_masks, similarities
from lightning_modules.losses.pairs import PairLoss


class MultiSimilarity(PairLoss):
    """Hard pairs weigh more, measured against the anchor's other pairs; easy ones are left out.

    Wang, Han, Huang, Dong, Scott. "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning". CVPR
    2019, arXiv 1904.06627. See ``kernels.multi_similarity``. Metrix mixes the pairs that the mining keeps.

    Args:
        alpha: sharpness on positives.
        beta: sharpness on negatives.
        base: similarity from which pairs count.
        epsilon: margin of the mining; None keeps every pair.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, "x > 0"] = 2.0,
        beta: Annotated[float, "x > 0"] = 40.0,
        base: Annotated[float, "-1 <= x <= 1"] = 0.5,
        epsilon: Annotated[float, "finite"] | None = 0.1,
        **memory: Any,
    ) -> None:
        super().__init__(**memory)
        self.pair_form = pair_form.multi_similarity(alpha, beta, base)
        self.epsilon = epsilon
        self.keys: dict[str, Any] = {"alpha": alpha, "beta": beta, "base": base, "epsilon": epsilon}

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, *, anchors: int = 0, **candidates: Any) -> Tensor:
        return multi_similarity_loss(rows_BE, labels_B, **self.keys, **candidates)

    def of_mixed(self, rows_BE: Tensor, labels_B: Tensor, pairs: MixedPairs, **candidates: Any) -> Tensor:
        kept = None
        if self.epsilon is not None:
            with torch.no_grad():
                masks = pair_masks(labels_B, candidates.get("column_labels"), candidates.get("first_own", 0))
                positive, negative = mine(similarities(rows_BE, candidates.get("columns")), *masks, self.epsilon)
                kept = positive | negative
        return super().of_mixed(rows_BE, labels_B, pairs, kept=kept, **candidates)
