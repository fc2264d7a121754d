"""Dynamic loss-based sample reweighting.

Sow et al. "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining". ICLR 2025, arXiv
2502.06733. Official code: sowmaster/Sample-Level-Loss-Reweighting-ICLR-2025.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Context
from lightning_modules.reweightings.base import BatchWeights, chosen

Strategy = Literal["linupper", "upper", "quadratic", "extremes"]


class DynamicLoss(BatchWeights):
    """``softmax(f(h) / r)``, h the loss of each sample scaled to [-1, 1] within the batch: the place decides, not the
    size.

    ``linupper`` lets easy samples count less, ``quadratic`` both ends, ``extremes`` the middle; see
    ``dynamic_loss_weights``. With noisy labels ``linupper`` keeps the mislabelled, whose losses are high, and
    ``extremes`` raises them.

    Args:
        strategy: f.
        radius: r; large is uniform. 0.4 in the official code; 1 is our default for images.
        warmup_updates: plain mean before; 1000 in the official code.
        quantile: h is scaled by this quantile of the losses and its counterpart, and cut there, so that one outlier
            does not press all others together; 0 for the smallest and the largest, as in the paper.
        term: the term of the loss that decides; None for the sum of all per-sample terms.
    """

    def __init__(
        self,
        *,
        strategy: Literal["linupper", "upper", "quadratic", "extremes"] = "linupper",
        radius: Annotated[float, "x > 0"] = 1.0,
        warmup_updates: Annotated[int, "x >= 0"] = 1000,
        quantile: Annotated[float, "0 <= x < 0.5"] = 0.0,
        term: str | None = None,
    ) -> None:
        super().__init__()
        self.strategy, self.radius, self.warmup_updates = strategy, radius, warmup_updates
        self.quantile, self.term = quantile, term

    def setup(self, context: Context) -> None:
        """Refuse a warm-up as long as the run."""
        updates = context.max_epochs * context.steps_per_epoch
        if self.warmup_updates >= updates:
            raise ValueError(
                f"DynamicLoss can never act: reweighting.warmup_updates={self.warmup_updates} lasts as long as the "
                f"{updates} updates of this run; lower it, or raise trainer.max_epochs"
            )

    def active(self, step: Step) -> bool:
        return step.update >= self.warmup_updates

    def weigh(self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        return dynamic_loss_weights(chosen(losses, self.term), self.strategy, self.radius, self.quantile)


def dynamic_loss_weights(loss_B: Tensor, strategy: Strategy, radius: float, quantile: float = 0.0) -> Tensor:
    """``softmax(f(h) / r)``, with ``h = 2 (l - (lmin + lmax) / 2) / max(lmax - lmin, 1e-6)`` in [-1, 1].

    ``linupper``: ``min(h + 1, 1)``; ``upper``: ``(h + 1) / 2``, in the official code only; ``quadratic``: ``1 - h^2``;
    ``extremes``: ``|h|``. The official ``uniform``, a softmax of the raw losses, is not uniform and is left out.

    Args:
        loss_B: ``[B]``, B >= 1.
        strategy: f.
        radius: r > 0.
        quantile: lmin and lmax are this quantile of the losses and its counterpart.

    Returns:
        ``[B]`` in float64 without gradient; sums to 1.
    """
    exact_B = loss_B.detach().double()
    if quantile:
        low, high = exact_B.quantile(quantile), exact_B.quantile(1 - quantile)
    else:
        low, high = exact_B.min(), exact_B.max()
    h_B = (2 * (exact_B - (low + high) / 2) / (high - low).clamp(min=1e-6)).clamp(-1, 1)
    match strategy:
        case "linupper":
            f_B = (h_B + 1).clamp(max=1)
        case "upper":
            f_B = (h_B + 1) / 2
        case "quadratic":
            f_B = 1 - h_B.square()
        case "extremes":
            f_B = h_B.abs()
    return torch.softmax(f_B / radius, 0)
