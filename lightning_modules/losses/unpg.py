"""Unified negative pair generation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from kernels.batch import Batch, Output, Step
from kernels.margin_softmax import margin_logits
from kernels.pairs import similarities
from kernels.unpg import unpg_loss, unpg_negatives
from lightning_modules.distributed import gather, gather_with_gradient
from lightning_modules.losses.margin_softmax import MarginSoftmax
from lightning_modules.losses.pairs import embedding_of


class UNPG(MarginSoftmax):
    """A margin softmax in which the similarities of negative pairs of the batch stand beside the other classes.

    Jung, Lee, Oh, Park, Park, Son. "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face
    Recognition". BMVC 2022, arXiv 2203.11593. Pairs are those of all processes; outliers are left out by a
    box-and-whisker filter, see ``kernels.unpg``.

    Args:
        margin_kind: margin of the own class.
        scale: factor of the cosines.
        margin: difference of cosines, or radians.
        wisk: length of the whiskers, in boxes.
        **proxies: the keys of ``ProxyLoss``.
    """

    per_sample = False
    gathers = True

    def __init__(
        self,
        *,
        margin_kind: Literal["cos_face", "arc_face"] = "cos_face",
        scale: Annotated[float, "x > 0"] = 30.0,
        margin: Annotated[float, "x >= 0"] = 0.35,
        wisk: Annotated[float, "x >= 0"] = 1.5,
        **proxies: Any,
    ) -> None:
        super().__init__(scale=scale, margin=margin, **proxies)
        self.kind, self.wisk = margin_kind, wisk

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        rows_BE = embedding_of(outputs)
        logits_BC = margin_logits(
            similarities(rows_BE, self.proxies.weight),
            batch.label,
            kind=self.kind,
            margin=self.margin,
            scale=self.scale,
        )
        whole_NE = gather_with_gradient(rows_BE, step.batch_size)
        labels_N = gather(batch.label, step.batch_size)
        pairs_K = unpg_negatives(similarities(whole_NE), labels_N, wisk=self.wisk)
        return {self.name: unpg_loss(logits_BC, batch.label, self.scale * pairs_K)}
