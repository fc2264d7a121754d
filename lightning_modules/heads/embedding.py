"""The linear embedding."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from kernels.batch import Output
from lightning_modules.heads.base import Head


class Embedding(Head):
    """``embedding = features @ weight.T + bias``, of any length: losses and retrieval normalize it.

    Args:
        in_features: D.
        num_classes: of the data; it does not matter to an embedding.
        dim: E; None leaves the features as they are, without weights.
        bias: whether there is a bias.
        layer_norm: normalize the features in front, without weights: "the layer norm trick" of ProxyNCA++ (Teh,
            DeVries, Taylor 2020, arXiv 2004.01113).

    Raises:
        ValueError: ``dim`` below 1.

    Example:
        >>> Embedding(64, 10, dim=8)(torch.randn(2, 64)).embedding.shape
        torch.Size([2, 8])
    """

    gives = frozenset({"embedding"})

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dim: Annotated[int, "1 <= x <= 1000000"] | None = 512,
        bias: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(in_features, num_classes)
        self.dim, self.bias, self.layer_norm = dim, bias, layer_norm
        self.norm = nn.LayerNorm(in_features, elementwise_affine=False) if layer_norm else nn.Identity()
        self.project = nn.Identity() if dim is None else nn.Linear(in_features, dim, bias=bias)

    @property
    def embedding_dim(self) -> int:
        """E."""
        return self.in_features if self.dim is None else self.dim

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        return Output(features=features_BD, embedding=self.project(self.norm(features_BD)))
