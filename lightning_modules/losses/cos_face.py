"""CosFace."""

from __future__ import annotations

from typing import Annotated, Any

from lightning_modules.losses.margin_softmax import MarginSoftmax


class CosFace(MarginSoftmax):
    """The own class needs a cosine larger by the margin: ``s (cos - m)``.

    Wang et al. "CosFace: Large Margin Cosine Loss for Deep Face Recognition". CVPR 2018, arXiv 1801.09414.

    Args:
        scale: factor of the cosines; 64 with many classes, 30 with few.
        margin: difference of cosines, 0 or more.
        **proxies: the keys of ``ProxyLoss``.
    """

    kind = "cos_face"

    def __init__(
        self, *, scale: Annotated[float, "x > 0"] = 30.0, margin: Annotated[float, "x >= 0"] = 0.35, **proxies: Any
    ) -> None:
        super().__init__(scale=scale, margin=margin, **proxies)
