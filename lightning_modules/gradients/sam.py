"""SAM: the gradient at the worst point of a ball around the weights.

Foret, Kleiner, Mobahi, Neyshabur. "Sharpness-Aware Minimization for Efficiently Improving Generalization". ICLR 2021,
arXiv 2010.01412.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from lightning_modules.gradients.base import Gradient, Seat, sum_terms


class SAM(Gradient):
    """The gradient at ``w + rho g / ||g||``, where ``g`` is the one at ``w``: two passes over every batch.

    The ball is that of all trained parameters together, those of parts (proxies, projectors) included, and of the whole
    update: with micro-batches and several processes ``g`` is the mean gradient. The second pass sees the same dropout
    masks, norm statistics and coefficients as the first and leaves no trace in them, so that ``rho -> 0`` is the plain
    gradient. Loss, accuracy and diagnostics are those of the first pass.

    Args:
        rho: radius of the ball; 0.05 in the paper for CIFAR and ImageNet, larger against label noise.
    """

    several_passes = True

    def __init__(self, *, rho: Annotated[float, "x >= 0"] = 0.05) -> None:
        super().__init__()
        self.rho = rho

    def forward(self, seat: Seat) -> None:
        for one in seat.passes():
            seat.backward(sum_terms(one.terms))
        moved = {name: p for name, p in seat.parameters.items() if p.grad is not None}
        weights: list[Tensor] = list(moved.values())
        with torch.no_grad():
            before = [p.clone() for p in weights]
            torch._foreach_add_(weights, self.ascent(moved))  # type: ignore[arg-type]
        for p in weights:
            p.grad = None
        for one in seat.passes():
            seat.backward(sum_terms(one.terms))
        with torch.no_grad():
            torch._foreach_copy_(weights, before)  # exactly where they were: subtracting would round

    def ascent(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """The step to the worst point, made of the gradients in their place."""
        gradients = [p.grad for p in weights.values() if p.grad is not None]
        torch._foreach_mul_(gradients, self.rho * reciprocal_norm(gradients))
        return gradients


def reciprocal_norm(tensors: Sequence[Tensor]) -> Tensor:
    """``1 / (||tensors|| + 1e-12)`` over all of them together, as is usual.

    The constant lets zeros be zeros, and a gradient whose squares underflow stay small.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors), dtype=_widest(tensors))))
    return 1.0 / (norm + 1e-12)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
