"""``MixedPairs``: the field by which Metrix tells a loss what to mix; see kernels/metrix.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.metrix import mixed_label, mixed_loss_explicit
from kernels.metrix_gram import embedding_metrix
from kernels.pair_form import PairForm
from kernels.pairs import similarities


@dataclass(frozen=True, slots=True)
class MixedPairs:
    """Pairs of one update. Without ``embeddings`` every pair of this kind is mixed, as embeddings.

    Attributes:
        kind: ``pos_neg`` or ``anc_neg``.
        lam: weight of the first member.
        weight: of the mixed loss.
        renormalize: take the cosine with a mix of embeddings.
        top_k: mix only with the k negatives most similar to the anchor; None for all.
        embeddings: ``[U, E]`` of mixed images or feature maps.
        pairs: ``[M, 3]`` anchor, first and second member: rows of the batch.
        position: ``[M]`` which of ``embeddings`` each pair has.
    """

    kind: str
    lam: float
    weight: float
    renormalize: bool = True
    top_k: int | None = None
    embeddings: Tensor | None = None
    pairs: Tensor | None = None
    position: Tensor | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """What the functions of kernels/metrix_gram.py and metrix_proxy.py take beside ``lam``."""
        return {"pairs": self.kind, "renormalize": self.renormalize, "top_k": self.top_k}

    def loss(
        self, form: PairForm, rows_BE: Tensor, labels_B: Tensor, *, kept: Tensor | None = None, **candidates: Any
    ) -> Tensor:
        """The mixed loss ``[B]`` of sample anchors.

        Args:
            form: the base loss.
            rows_BE: embeddings of the anchors.
            labels_B: their classes.
            kept: boolean ``[B, N]``, the clean pairs that a miner kept; None for all.
            **candidates: ``columns``, ``column_labels`` and ``first_own``.
        """
        if self.embeddings is None:
            return embedding_metrix(form, rows_BE, labels_B, self.lam, kept=kept, **self.keywords, **candidates)
        pairs_M3, position_M = self.explicit(kept, candidates.get("first_own", 0))
        similarity_BU = similarities(rows_BE, self.embeddings)
        anchor_M = pairs_M3[:, 0]
        return mixed_loss_explicit(form, *self.labelled(similarity_BU[anchor_M, position_M]), anchor_M, len(rows_BE))

    def explicit(self, kept: Tensor | None, first_own: int) -> tuple[Tensor, Tensor]:
        """Pairs and positions, without those that a miner left out."""
        assert self.pairs is not None and self.position is not None
        if kept is None:
            return self.pairs, self.position
        anchor_M, first_M, second_M = self.pairs.unbind(1)
        stays_M = kept[anchor_M, second_M + first_own]
        if self.kind == "pos_neg":
            stays_M = stays_M & kept[anchor_M, first_M + first_own]
        return self.pairs[stays_M], self.position[stays_M]

    def labelled(self, similarity_M: Tensor) -> tuple[Tensor, Tensor]:
        """The similarities, and the label of each."""
        return similarity_M, torch.full_like(similarity_M, mixed_label(self.kind, self.lam))
