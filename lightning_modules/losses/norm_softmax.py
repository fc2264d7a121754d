"""Normalized softmax."""

from __future__ import annotations

from lightning_modules.losses.margin_softmax import MarginSoftmax


class NormSoftmax(MarginSoftmax):
    """Cross-entropy over ``cos / temperature``.

    Zhai, Wu. "Classification is a Strong Baseline for Deep Metric Learning". BMVC 2019, arXiv 1811.12649.

    Args:
        temperature: above 0.
        lr_scale: as in ``ProxyLoss``.
    """

    def __init__(self, *, temperature: float = 0.05, lr_scale: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"loss.temperature={temperature} must be positive")
        super().__init__(scale=1.0 / temperature, lr_scale=lr_scale)
