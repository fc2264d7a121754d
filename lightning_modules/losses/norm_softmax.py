"""Normalized softmax."""

from __future__ import annotations

from typing import Annotated

from lightning_modules.losses.margin_softmax import MarginSoftmax


class NormSoftmax(MarginSoftmax):
    """Cross-entropy over ``cos / temperature``.

    Zhai, Wu. "Classification is a Strong Baseline for Deep Metric Learning". BMVC 2019, arXiv 1811.12649.

    Args:
        temperature: above 0.
        lr_scale: as in ``ProxyLoss``.
    """

    def __init__(
        self, *, temperature: Annotated[float, "x > 0"] = 0.05, lr_scale: Annotated[float, "x > 0"] = 1.0
    ) -> None:
        super().__init__(scale=1.0 / temperature, lr_scale=lr_scale)
