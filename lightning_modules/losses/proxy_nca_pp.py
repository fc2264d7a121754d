"""ProxyNCA++ loss."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from kernels import pair_form
from kernels.batch import Batch, Output, Step
from kernels.metrix_proxy import proxy_nca_metrix
from kernels.proxy import proxy_nca_pp_loss
from lightning_modules.losses.pairs import embedding_of
from lightning_modules.losses.proxies import ProxyLoss


class ProxyNCAPP(ProxyLoss):
    """Minus the log-probability of the own class vector among all of them, by squared distance.

    Teh, DeVries, Taylor. "ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis". ECCV 2020,
    arXiv 2004.01113. With Metrix, class vectors are mixed (and the sample with those of other classes), so only
    embeddings can be.

    Args:
        temperature: T of ``exp(-d^2 / T)``.
        **proxies: the keys of ``ProxyLoss``.
    """

    mixed_outside = ()

    def __init__(
        self, *, temperature: Annotated[float, "x > 0"] = 1 / 9, lr_scale: Annotated[float, "x > 0"] = 100.0
    ) -> None:
        super().__init__(lr_scale=lr_scale)
        self.temperature = temperature
        self.pair_form = pair_form.nca(temperature / 2, over_all=True)

    def of_samples(self, rows_BE: Tensor, labels_B: Tensor, weight_CE: Tensor) -> Tensor:
        return proxy_nca_pp_loss(rows_BE, labels_B, weight_CE, temperature=self.temperature)

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        terms = super().forward(outputs, batch, step)
        if (pairs := batch.extra.get("mixed_pairs")) is not None:
            mixed_B = proxy_nca_metrix(
                embedding_of(outputs),
                batch.label,
                self.proxies.weight,
                pairs.lam,
                # With squared distances the exponent is 2 s / T; mixes keep that scale.
                temperature=self.temperature / 2,
                **pairs.keywords,
            )
            terms["metrix"] = pairs.weight * mixed_B
        return terms
