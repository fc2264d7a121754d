"""The linear classifier."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn import functional as F

from kernels.batch import Output
from lightning_modules.heads.base import Head


class Linear(Head):
    """``logits = features @ weight.T + bias``.

    Args:
        in_features: D.
        num_classes: C.
        bias: whether there is a bias.
        dropout_prob: dropout of the features in front of the classifier, in [0, 1).

    Raises:
        ValueError: ``dropout_prob`` outside [0, 1).

    Example:
        >>> Linear(64, 10)(torch.randn(2, 64)).logits.shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = True,
        dropout_prob: Annotated[float, "0 <= x < 1"] = 0.0,
    ) -> None:
        super().__init__(in_features, num_classes)
        self.dropout_prob = dropout_prob
        start = nn.Linear(in_features, num_classes, bias=bias)  # PyTorch's initialization, the one timm keeps
        self.weight = start.weight
        self.bias = start.bias

    def settings(self) -> dict[str, Any]:
        return {"bias": self.bias is not None, "dropout_prob": self.dropout_prob}

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        dropped_BD = F.dropout(features_BD, self.dropout_prob, self.training) if self.dropout_prob else features_BD
        return Output(features=features_BD, logits=F.linear(dropped_BD, self.weight, self.bias))
