"""Projected Adam ascent in the L-inf ball: the inner optimiser of "DONE-ADAM".

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311. Adam:
Kingma, Ba. "Adam: A Method for Stochastic Optimization". ICLR 2015, arXiv 1412.6980. Steps and step size of the former
are not known: the defaults are those of ``PGD``, and Adam's own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.perturbation import as_fraction, box
from lightning_modules.attacks.base import BallAttack, Draw, Found, hard
from lightning_modules.attacks.victim import Victim
from lightning_modules.precision import at_least_float32


class AdamPGD(BallAttack):
    """``x <- P(x + step_size m / (sqrt(v) + adam_eps))``, with m and v the corrected moments of the gradient.

    The gradient is that of each sample by itself and moments are kept number by number, so that a sample does not
    depend on its batch. The first step is nearly a sign step.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        steps: K.
        step_size: of each step, a number or a fraction.
        start: ``uniform`` in the ball, or ``none``.
        beta1, beta2: decay of the moments.
        adam_eps: beside the root; gradients much smaller than it move little.
        objective, norms, bf16: as for ``BallAttack``.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        steps: Annotated[int, "x >= 0"] = 10,
        step_size: Annotated[float, "x >= 0"] | str = "2/255",
        start: Literal["uniform", "none"] = "uniform",
        beta1: Annotated[float, "0 <= x < 1"] = 0.9,
        beta2: Annotated[float, "0 <= x < 1"] = 0.999,
        adam_eps: Annotated[float, "x > 0"] = 1e-8,
        objective: Literal["ce", "kl"] = "ce",
        norms: Literal["eval", "train"] = "eval",
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, objective=objective, norms=norms, bf16=bf16)
        self.steps, self.step_size, self.start = steps, float(as_fraction(step_size)), start
        self.beta1, self.beta2, self.adam_eps = beta1, beta2, adam_eps

    def search(self, victim: Victim, image: Tensor, label: Tensor, draw: Draw) -> Found:
        raised = self.raised(victim, image, label)
        right, survived = hard(label), torch.zeros(len(image), dtype=torch.int64, device=image.device)
        low, high = box(image, self.eps)
        moved = image
        if self.start == "uniform":
            moved = (image + self.eps * (2 * draw.uniform(image, "attack.start") - 1)).clamp(low, high)
        first = second = torch.zeros_like(at_least_float32(image))
        for step in range(1, self.steps + 1):
            found, _, logits = victim.gradient(moved, raised)
            survived += logits.argmax(1) == right
            gradient = at_least_float32(found)
            first = self.beta1 * first + (1 - self.beta1) * gradient
            second = self.beta2 * second + (1 - self.beta2) * gradient.square()
            root = (second / (1 - self.beta2**step)).sqrt() + self.adam_eps
            change = self.step_size * (first / (1 - self.beta1**step)) / root
            moved = (moved + change.to(image.dtype)).clamp(low, high)
        return Found(moved, survived)
