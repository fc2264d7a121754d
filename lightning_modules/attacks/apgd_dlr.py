"""APGD on the difference of logits ratio (Croce, Hein, ICML 2020, arXiv 2003.01690): APGD-DLR, and APGD-T."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from kernels.adversarial_losses import dlr, dlr_targeted
from lightning_modules.attacks.apgd import APGD


class APGDDLR(APGD):
    """Raises ``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))``, or towards each of several targets
    ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``; both do not change with the scale of the logits.

    The first needs 3 classes and the second 4. With fewer it raises the margin, the numerator alone.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: of each run.
        rho: share of rising steps that keeps the step size.
        targets: runs towards the classes of highest logits at the clean image, the true one aside (APGD-T; AutoAttack
            has 9). With C classes it is ``min(targets, C - 1)``, with a warning. None is untargeted.
        restarts: runs from random starts for each target; a sample that has fallen is in no further one.
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
        targets: Annotated[int, "x >= 1"] | None = 9,
        restarts: Annotated[int, "x >= 1"] = 1,
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, steps=steps, rho=rho, targets=targets, restarts=restarts, bf16=bf16)

    def criterion(self, logits_BC: Tensor, label_B: Tensor, target_B: Tensor) -> Tensor:
        if self.targets is None:
            return dlr(logits_BC, label_B)
        return dlr_targeted(logits_BC, label_B, target_B)
