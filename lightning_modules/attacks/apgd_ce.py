"""APGD on the cross-entropy, the first attack of AutoAttack (Croce, Hein, ICML 2020, arXiv 2003.01690)."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_modules.attacks.apgd import APGD


class APGDCE(APGD):
    """Raises the cross-entropy of the true class.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: of each run.
        rho: share of rising steps that keeps the step size.
        restarts: runs from random starts; a sample that has fallen is in no further one.
        bf16: forwards of the attack in bfloat16.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Literal["linf", "l2"] = "linf",
        steps: Annotated[int, "x >= 1"] = 100,
        rho: Annotated[float, "0 <= x <= 1"] = 0.75,
        restarts: Annotated[int, "x >= 1"] = 1,
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, steps=steps, rho=rho, restarts=restarts, bf16=bf16)

    def criterion(self, logits_BC: Tensor, label_B: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(logits_BC, label_B, reduction="none")
