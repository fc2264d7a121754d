"""ArcFace."""

from __future__ import annotations

from typing import Annotated, Any

from lightning_modules.losses.margin_softmax import MarginSoftmax


class ArcFace(MarginSoftmax):
    """The own class needs an angle smaller by the margin: ``s cos(theta + m)``, continued downwards beyond pi - m.

    Deng, Guo, Xue, Zafeiriou. "ArcFace: Additive Angular Margin Loss for Deep Face Recognition". CVPR 2019, arXiv
    1801.07698.

    Args:
        scale: factor of the cosines; 64 with many classes, 30 with few.
        margin: angle, in radians.
        **proxies: the keys of ``ProxyLoss``.
    """

    kind = "arc_face"

    def __init__(
        self,
        *,
        scale: Annotated[float, "x > 0"] = 30.0,
        margin: Annotated[float, "0 <= x < 3.1416"] = 0.5,
        **proxies: Any,
    ) -> None:
        super().__init__(scale=scale, margin=margin, **proxies)
