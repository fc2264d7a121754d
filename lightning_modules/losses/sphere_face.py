"""SphereFace."""

from __future__ import annotations

from typing import Annotated, Any

from lightning_modules.losses.margin_softmax import MarginSoftmax


class SphereFace(MarginSoftmax):
    """The angle to the own class counts ``margin`` times; the length of the embedding is a factor of the logits.

    Liu et al. "SphereFace: Deep Hypersphere Embedding for Face Recognition". CVPR 2017, arXiv 1704.08063.

    Args:
        scale: further factor of the logits.
        margin: a whole number, 1 or more.
        **proxies: the keys of ``ProxyLoss``.
    """

    kind = "sphere_face"

    def __init__(
        self, *, scale: Annotated[float, "x > 0"] = 1.0, margin: Annotated[int, "x >= 1"] = 4, **proxies: Any
    ) -> None:
        super().__init__(scale=scale, margin=margin, **proxies)
