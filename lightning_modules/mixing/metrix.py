"""Metrix: mixed examples for losses on pairs and proxies."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step
from kernels.metrix import draw_mix, list_pairs
from kernels.mixed_pairs import MixedPairs
from kernels.pairs import hardest, pair_masks, similarities
from lightning_modules.norm_statistics import norm_statistics_frozen
from lightning_modules.part import Loss, Mixing, Part

KINDS = {"pos_neg": ("pos_neg",), "anc_neg": ("anc_neg",), "both": ("pos_neg", "anc_neg")}


class Metrix(Mixing):
    """Adds ``weight`` times the loss on mixed examples, which are positive with the weight lam and negative else.

    Venkataramanan, Psomas, Kijak, Amsaleg, Karantzalos, Avrithis. "It Takes Two to Tango: Mixup for Deep Metric
    Learning". ICLR 2022, arXiv 2106.04990. The draws of an update are functions of (seed, update), so the same in every
    process and after a resume.

    Args:
        mode: what is mixed. ``embedding`` costs next to nothing; ``feature`` (the map that is pooled) runs pooling and
            head once more; ``input`` runs the whole network on every mixed image, whose normalization uses the
            statistics of these images and leaves the running ones alone.
        pair_type: ``pos_neg`` mixes each positive with each negative of an anchor, ``anc_neg`` the anchor itself with
            each of its negatives, ``both`` draws one of the two for each update.
        alpha: of ``lam ~ Beta(alpha, alpha)``, one lam an update.
        weight: of the mixed loss; 0.4 in the paper.
        top_k: mix only with the k negatives most similar to the anchor; None for all of them, which ``input`` and
            ``feature`` refuse: they would run the head or the network on about B^2 examples.
        renormalize: bring mixed embeddings back to length 1 (``embedding`` only).

    Raises:
        ValueError: a value outside its range, or one that has no effect on the mode.
    """

    at = "embedding"
    does = frozenset({"mixes_pairs"})
    needs = frozenset({"embedding", "hard_labels", "pair_form"})

    def __init__(
        self,
        *,
        mode: Literal["input", "feature", "embedding"] = "embedding",
        pair_type: Literal["pos_neg", "anc_neg", "both"] = "both",
        alpha: Annotated[float, "x > 0"] = 2.0,
        weight: Annotated[float, "x >= 0"] = 0.4,
        top_k: Annotated[int, "x >= 1"] | None = None,
        renormalize: bool = True,
    ) -> None:
        super().__init__()
        if mode != "embedding" and top_k is None:
            raise ValueError(
                f"mixing.mode={mode} needs mixing.top_k: every mixed example is an {mode} of its own; the paper has 3"
            )
        if mode != "embedding" and not renormalize:
            raise ValueError(f"mixing.renormalize=false has no effect on mixing.mode={mode}; leave it out")
        self.mode, self.kinds, self.alpha, self.weight = mode, KINDS[pair_type], alpha, weight
        self.top_k, self.renormalize = top_k, renormalize
        self.maps = ("final",) if mode == "feature" else ()

    def objections(self, loss: Part) -> list[str]:
        if self.mode == "embedding" or self.weight == 0 or not isinstance(loss, Loss):
            return []
        found = []
        if wrong := [kind for kind in self.kinds if kind not in loss.mixed_outside]:
            allowed = " or ".join(f"pair_type={kind}" for kind in loss.mixed_outside)
            found.append(
                f"{type(loss).__name__} compares with class vectors, which are no images and have no feature maps, so "
                f"mode={self.mode} cannot mix {' and '.join(wrong)}; take mode=embedding{' or ' if allowed else ''}"
                f"{allowed}"
            )
        if getattr(loss, "memory", 0):
            found.append(
                f"the memory of the loss holds embeddings, of which mode={self.mode} has neither images nor maps; take "
                "mode=embedding or loss.memory=0"
            )
        return found

    def mix_pairs(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Batch:
        """The batch with ``mixed_pairs`` as an extra field; itself where the weight is 0."""
        if self.weight == 0:
            return batch
        kind, lam = draw_mix(step.seed, step.update, self.alpha, self.kinds)
        mixed = MixedPairs(kind, lam, self.weight, self.renormalize, self.top_k)
        if self.mode != "embedding":
            mixed = self._explicit(kind, lam, outputs["main"], batch, step)
        return batch.replace(extra={**batch.extra, "mixed_pairs": mixed})

    def _explicit(self, kind: str, lam: float, output: Output, batch: Batch, step: Step) -> MixedPairs:
        """Mixes of this process's images or maps; each mix is forwarded once, however many anchors it serves."""
        pairs_M3 = self._pairs(kind, output, batch.label)
        codes, position_M = (pairs_M3[:, 1] * len(batch) + pairs_M3[:, 2]).unique(return_inverse=True)
        first_U, second_U = codes // len(batch), codes % len(batch)
        if not len(codes):  # no pair to mix
            mixed = Output(embedding=None if output.embedding is None else output.embedding[:0])
        else:
            with norm_statistics_frozen(step.network):
                if self.mode == "feature":
                    mixed = step.forward(None, from_map=_mix(output.maps["final"], first_U, second_U, lam))
                else:
                    mixed = step.forward(_mix(batch.image, first_U, second_U, lam))
        return MixedPairs(kind, lam, self.weight, True, self.top_k, mixed.embedding, pairs_M3, position_M)

    @torch.no_grad()
    def _pairs(self, kind: str, output: Output, labels_B: Tensor) -> Tensor:
        """``[M, 3]`` with the hardest negatives of each anchor."""
        assert output.embedding is not None and self.top_k is not None
        positive_BB, negative_BB = pair_masks(labels_B)
        negative_BB = hardest(similarities(output.embedding), negative_BB, self.top_k)
        return list_pairs(positive_BB, negative_BB, kind)


def _mix(values: Tensor, first_U: Tensor, second_U: Tensor, lam: float) -> Tensor:
    """``lam first + (1 - lam) second``."""
    return torch.lerp(values[second_U], values[first_U], lam)
