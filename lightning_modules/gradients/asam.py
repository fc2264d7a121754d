"""ASAM: SAM in a ball that grows with the weights.

Kwon, Kim, Park, Choi. "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
Networks". ICML 2021, arXiv 2102.11600. Official code: SamsungLabs/ASAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from lightning_modules.gradients.sam import SAM, reciprocal_norm


class ASAM(SAM):
    """The gradient at ``w + rho T^2 g / ||T g||`` with ``T = |w| + eta`` element by element.

    Scaling a layer up and the next one down leaves the ball where it is. As in the official code, ``T = 1`` for every
    parameter that is not called a weight: biases, tokens, the parameters of a weight's surgery. Class vectors of a loss
    are weights.

    Args:
        rho: radius; 0.5 in the paper for CIFAR-10, 1.0 for CIFAR-100 and ImageNet.
        eta: keeps weights near zero movable; 0.01 in the paper.
    """

    def __init__(self, *, rho: Annotated[float, "x >= 0"] = 0.5, eta: Annotated[float, "x >= 0"] = 0.01) -> None:
        super().__init__(rho=rho)
        self.eta = eta

    def ascent(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        scaled = [gradient for name, gradient in gradients.items() if is_weight(name)]
        scales = [weight.abs().add_(self.eta) for name, weight in weights.items() if is_weight(name)]
        every = list(gradients.values())
        torch._foreach_mul_(scaled, scales)  # in place, so that ``every`` holds T g
        rate = self.rho * reciprocal_norm(every)
        torch._foreach_mul_(scaled, scales)
        torch._foreach_mul_(every, rate)
        return every


def is_weight(name: str) -> bool:
    """Whether a parameter of this dotted name is a weight, also where the weight is a function of it.

    Example:
        >>> is_weight("backbone.conv1.weight"), is_weight("backbone.conv1.bias"), is_weight("reweighting.temperature")
        (True, False, False)
    """
    owner, _, own = name.rpartition(".")
    return "weight" in own or (own.startswith("original") and owner.endswith(".parametrizations.weight"))
