"""The scaled cosine classifier."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.batch import Output
from lightning_modules.heads.base import Head


class Cosine(Head):
    """``logits = scale * cos(features, weight)``: norms of features and class weights carry no information.

    Computed in at least float32, also under autocast: a cosine rounded to bfloat16 would move a logit by scale / 256.

    Source: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018 (arXiv:1804.09458),
    section 3.2; there the scale is learned and starts at 10.

    Args:
        in_features: D.
        num_classes: C.
        scale: factor of the cosine, and where a learned one starts; above 0.
        learn_scale: whether the scale is a parameter.

    Raises:
        ValueError: ``scale`` not above 0.

    Example:
        >>> bool(Cosine(64, 10)(torch.randn(2, 64)).logits.abs().max() <= 10)
        True
    """

    def __init__(
        self, in_features: int, num_classes: int, *, scale: Annotated[float, "x > 0"] = 10.0, learn_scale: bool = True
    ) -> None:
        super().__init__(in_features, num_classes)
        # Directions uniform on the sphere; the length of a class weight does not matter to the output.
        self.weight = nn.Parameter(torch.randn(num_classes, in_features) / in_features**0.5)
        start = torch.tensor(float(scale))
        if learn_scale:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale.item(), "learn_scale": isinstance(self.scale, nn.Parameter)}

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        dtype = torch.promote_types(torch.promote_types(features_BD.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(features_BD.device.type, enabled=False):
            weight_CD = F.normalize(self.weight.to(dtype), dim=1)
            cosine_BC = F.linear(F.normalize(features_BD.to(dtype), dim=1), weight_CD)
            return Output(features=features_BD, logits=self.scale.to(dtype) * cosine_BC)
