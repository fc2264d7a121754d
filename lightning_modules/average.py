"""An exponential moving average of a network: what is evaluated instead of it, or what teaches it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """``v <- decay * v + (1 - decay) * theta`` for every parameter and floating buffer, started as a copy.

    Norm statistics are averaged with the rest; integer buffers are copied. Always in eval mode and without gradient.
    One fused update for each dtype (timm's ``ModelEmaV3`` falls back to one kernel a tensor where dtypes differ, as
    they do here: normalization constants are float64).

    Args:
        network: copied, then followed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Average:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float) -> None:
        """Move towards ``network``, which has the same architecture."""
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for ours, theirs in zip(_tensors(self.module), _tensors(network), strict=True):
            if not ours.is_floating_point():
                ours.copy_(theirs)
                continue
            averages, values = groups.setdefault(ours.dtype, ([], []))
            averages.append(ours)
            values.append(theirs)
        for averages, values in groups.values():
            torch._foreach_lerp_(averages, values, 1.0 - decay)

    def forward(self, *args: Any, **keys: Any) -> Any:
        return self.module(*args, **keys)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, then buffers, in the module's own order."""
    return [p.detach() for p in module.parameters()] + list(module.buffers())
