"""Two classifiers on the same features: one learns from labels, one from a teacher.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor, nn

from kernels.batch import Output
from lightning_modules.heads.base import Head
from lightning_modules.heads.linear import Linear

WIDTH, DROPOUT_PROB = 200, 0.1  # of the official non-linear one


class Dual(Linear):
    """The linear classifier, and beside it in training an auxiliary one for the terms that name it.

    The loss reads ``logits``, and terms with ``head: auxiliary`` read ``auxiliary["logits"]``: neither classifier has a
    gradient of the other's. The auxiliary one is not computed in eval mode and not exported. It is initialized after
    the main one, which thereby starts as a ``Linear`` does.

    Args:
        in_features: D.
        num_classes: C.
        auxiliary: ``linear``, the paper's for student and teacher of one family, or ``nonlinear`` across families:
            ``Linear(D, 200) -> dropout 0.1 -> batch norm -> ReLU -> Linear(200, C)``.
        bias: whether the main classifier has one.
        dropout_prob: of the features in front of the main classifier.

    Example:
        >>> output = Dual(64, 10)(torch.randn(2, 64))
        >>> output.logits.shape, output.auxiliary["logits"].shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    gives = frozenset({"logits", "auxiliary_logits"})

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        auxiliary: Literal["linear", "nonlinear"] = "linear",
        bias: bool = True,
        dropout_prob: Annotated[float, "0 <= x < 1"] = 0.0,
    ) -> None:
        super().__init__(in_features, num_classes, bias=bias, dropout_prob=dropout_prob)
        self.kind = auxiliary
        self.auxiliary = _auxiliary(in_features, num_classes, auxiliary)

    def settings(self) -> dict[str, Any]:
        return {"auxiliary": self.kind, **super().settings()}

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        output = super().forward(features_BD)
        if self.training:
            output.auxiliary["logits"] = self.auxiliary(features_BD)
        return output

    def plain(self) -> Head:
        """The main classifier."""
        head = Linear(self.in_features, self.num_classes, **super().settings())
        head.weight, head.bias = self.weight, self.bias
        return head.train(self.training)


def _auxiliary(in_features: int, num_classes: int, kind: str) -> nn.Module:
    if kind == "linear":
        return nn.Linear(in_features, num_classes)
    return nn.Sequential(
        nn.Linear(in_features, WIDTH),
        nn.Dropout(DROPOUT_PROB),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, num_classes),
    )
