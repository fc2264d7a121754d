"""The weight function of the weight compander.

Cakaj, Mehnert, Yang. "Weight Compander: A Simple Weight Reparameterization for Regularization". 2023,
arXiv 2306.16993.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.weight_compander import compand, expand, limit
from lightning_modules.surgery.weights import WeightFunction

CLAMP = 0.98  # of the bound: beyond, the inverse explodes and the weight would hardly ever come back
INSIDE = 1 - 1e-6  # of the bound: float32 rounds a saturated function up to its limit
MOST = 40.0  # |log a - log a0|, |log b - log b0|: exp stays positive and finite in float32


class CompandedWeight(WeightFunction):
    """``w = a * arctan(v / b)`` or ``a * tanh(v / b)`` with one pair of scales for the layer.

    ``a`` and ``b`` start at ``a0`` and ``b0`` (float64 whatever the weight is cast to). Learned scales are
    ``a0 * exp(log_a)`` and ``b0 * exp(log_b)``: logarithms relative to the start, which cannot change a sign. Their
    optimizer group has 0.1 of the learning rate and a weight decay of ``2 * penalty``, which for SGD is the gradient of
    ``penalty * (log_a^2 + log_b^2)``.

    A layer is one elementwise function, so ``compute_all`` is the plain loop: joining layers would copy every weight.

    Args:
        kind: ``arctan`` or ``tanh``.
        slope: a0 / b0.
        bound: of ``|w|`` at the start.
        learnable: train the scales.
        penalty: mu.
    """

    a0: Tensor
    b0: Tensor

    def __init__(
        self, kind: Literal["arctan", "tanh"], slope: float, bound: float, learnable: bool = False, penalty: float = 0.0
    ) -> None:
        super().__init__()
        self.kind, self.slope, self.learnable = kind, slope, learnable
        a0 = bound * INSIDE / limit(kind)
        self.register_buffer("a0", torch.tensor(a0, dtype=torch.float64))
        self.register_buffer("b0", torch.tensor(a0 / slope, dtype=torch.float64))
        if learnable:
            self.log_a, self.log_b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
            self.group_options = {"lr_scale": 0.1, "weight_decay": 2 * penalty}

    def scales(self) -> tuple[Tensor, Tensor]:
        """a and b."""
        if not self.learnable:
            return self.a0, self.b0
        return self.a0 * self.log_a.clamp(-MOST, MOST).exp(), self.b0 * self.log_b.clamp(-MOST, MOST).exp()

    def forward(self, original: Tensor) -> Tensor:
        return compand(original, *self.scales(), self.kind)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """The parameter that gives this weight; weights beyond 0.98 of the bound are clamped to it."""
        a, b = self.scales()
        most = CLAMP * self.bound()
        return expand(weight.clamp(-most, most), a, b, self.kind)

    @torch.no_grad()
    def bound(self) -> float:
        """M, which no weight reaches. Reads from the device."""
        return float(self.scales()[0]) * limit(self.kind) / INSIDE

    @torch.no_grad()
    def beyond(self, weight: Tensor) -> int:
        """How many of these weights ``right_inverse`` would clamp. Reads from the device."""
        return int((weight.abs() > CLAMP * self.bound()).sum())

    @torch.no_grad()
    def diagnostics(self, weight: Tensor) -> dict[str, float]:
        """What the function does to a layer's weights; for reports, since it reads from the device.

        Args:
            weight: of the layer, as it is used.

        Returns:
            ``largest``: max |w| over the bound. ``small``: share below 0.1 standard deviations. ``saturated``: share
            whose slope dw/dv is below 0.05 of the slope at zero.
        """
        a, b = self.scales()
        with torch.enable_grad():
            v = self.right_inverse(weight.double()).requires_grad_()
            slope = torch.autograd.grad(compand(v, a, b, self.kind).sum(), v)[0]
        return {
            "largest": float(weight.abs().max()) / self.bound(),
            "small": float((weight.abs() < 0.1 * weight.std()).double().mean()),
            "saturated": float((slope < 0.05 * a / b).double().mean()),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompandedWeight:
        """The scales of the start stay float64: rounded, they would change every weight."""
        exact = self.a0, self.b0
        super()._apply(fn, recurse)
        if self.a0.dtype != torch.float64:
            self.a0, self.b0 = (value.to(self.a0.device) for value in exact)
        return self

    def extra_repr(self) -> str:
        return f"{self.kind}, slope={self.slope}, learnable={self.learnable}"
