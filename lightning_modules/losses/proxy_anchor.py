"""Proxy-Anchor loss."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from kernels import pair_form
from kernels.batch import Batch, Output, Step
from kernels.metrix import mixed_sums
from kernels.metrix_proxy import proxy_anchor_metrix, proxy_shares
from kernels.mixed_pairs import MixedPairs
from kernels.pairs import similarities
from kernels.proxy import proxy_anchor_loss
from lightning_modules.distributed import gather, gather_with_gradient
from lightning_modules.losses.pairs import embedding_of
from lightning_modules.losses.proxies import ProxyLoss


class ProxyAnchor(ProxyLoss):
    """Every class vector is an anchor that gathers its samples of the batch and pushes all others away.

    Kim, Kim, Cho, Kwak. "Proxy Anchor Loss for Deep Metric Learning". CVPR 2020, arXiv 2003.13911. One value of the
    whole batch, over all processes. With Metrix, mixed images and maps are those of two samples (a class vector is no
    image, so ``pair_type`` must be ``pos_neg`` there); embeddings are mixed as the paper says.

    Args:
        alpha: sharpness.
        delta: margin.
        **proxies: the keys of ``ProxyLoss``; the paper trains the vectors with 100 times the learning rate.
    """

    per_sample = False
    gathers = True
    mixed_outside = ("pos_neg",)

    def __init__(
        self,
        *,
        alpha: Annotated[float, "x > 0"] = 32.0,
        delta: Annotated[float, "-1 <= x <= 1"] = 0.1,
        lr_scale: Annotated[float, "x > 0"] = 100.0,
    ) -> None:
        super().__init__(lr_scale=lr_scale)
        self.keys: dict[str, Any] = {"alpha": alpha, "delta": delta}
        self.pair_form = pair_form.proxy_anchor(**self.keys)

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        rows_NE = gather_with_gradient(embedding_of(outputs), step.batch_size)
        labels_N = gather(batch.label, step.batch_size)
        weight = self.proxies.weight
        loss_N = proxy_anchor_loss(rows_NE, labels_N, weight, **self.keys)
        terms = {self.name: loss_N.sum() / max(len(loss_N), 1)}  # the mean, and 0 of no sample
        if (pairs := batch.extra.get("mixed_pairs")) is not None:
            mixed_P = (
                proxy_anchor_metrix(rows_NE, labels_N, weight, pairs.lam, **self.keys, **pairs.keywords)
                if pairs.embeddings is None
                else self._explicit(pairs, batch.label)
            )
            terms["metrix"] = pairs.weight * mixed_P.sum()
        return terms

    def _explicit(self, pairs: MixedPairs, labels_B: Tensor) -> Tensor:
        """Shares ``[P]`` of the proxies; a mix belongs to the class of its first member, whose proxy is the anchor."""
        pairs_M3, position_M = pairs.explicit(None, 0)
        first_M, second_M = pairs_M3[:, 1], pairs_M3[:, 2]
        once = torch.stack([first_M, second_M, position_M]).unique(dim=1)  # one mix serves one proxy, once
        proxy_M = labels_B[once[0]]
        similarity_PU = similarities(self.proxies.weight, pairs.embeddings)
        similarity_M, y_M = pairs.labelled(similarity_PU[proxy_M, once[2]])
        form = pair_form.proxy_anchor(**self.keys)
        return proxy_shares(form, *mixed_sums(form, similarity_M, y_M, proxy_M, len(self.proxies.weight)))
