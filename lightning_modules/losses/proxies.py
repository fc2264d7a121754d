"""What losses with a vector for each class share: the vectors, and their learning rate."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step
from lightning_modules.losses.pairs import embedding_of
from lightning_modules.part import Context, Loss


class Proxies(nn.Module):
    """``weight [C, E]``, one vector for each class, drawn from the normal distribution: uniform directions."""

    def __init__(self, num_classes: int, dim: int, lr_scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, dim) * (2.0 / num_classes) ** 0.5)
        self.group_options = {"lr_scale": lr_scale}


class ProxyLoss(Loss):
    """A loss of each sample against a trained vector for each class. It is dropped at export, as every loss.

    Args:
        lr_scale: learning rate of the vectors, in those of the network; above 0.

    Raises:
        ValueError: ``lr_scale`` not positive.
    """

    needs = frozenset({"embedding", "hard_labels"})

    def __init__(self, *, lr_scale: Annotated[float, "x > 0"] = 1.0) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.proxies: Proxies

    def setup(self, context: Context) -> None:
        head: Any = context.network.head
        self.proxies = Proxies(context.num_classes, head.embedding_dim, self.lr_scale)

    def of_samples(self, rows_BE: Tensor, labels_B: Tensor, weight_CE: Tensor) -> Tensor:
        """The loss ``[B]``."""
        raise NotImplementedError(f"{type(self).__name__} must define of_samples(rows, labels, weight)")

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        return {self.name: self.of_samples(embedding_of(outputs), batch.label, self.proxies.weight)}
