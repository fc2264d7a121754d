"""N-FGSM: one sign step from loud noise, without a ball.

de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania. "Make Some Noise: Reliable and Efficient Single-Step Adversarial
Training". NeurIPS 2022, arXiv 2202.01181. Official code: pdejorge/N-FGSM.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from kernels.perturbation import as_fraction, box
from lightning_modules.attacks.base import BallAttack, Draw, Found, hard
from lightning_modules.attacks.victim import Victim


class NFGSM(BallAttack):
    """``x0 = clip(x + U[-k eps, k eps])``, ``x' = clip(x0 + step_size sign(grad at x0))``.

    Neither the noise nor the result is put back into the ball of radius ``eps``, which is the point of the method; both
    are clipped to [0, 1], as in the official code. So ``x'`` may be ``k eps + step_size`` away: an attack to train
    with, not one to measure robustness by. It costs what FGSM does, and does not overfit to itself as that does.

    Args:
        eps: radius of the ball that training is to withstand, a number or a fraction such as 8/255.
        noise: k, in units of ``eps``; 2 in the paper (3 or 4 for some of the largest radii).
        step_size: alpha, a number or a fraction; None for ``eps``, as in the paper.
        objective, norms, bf16: as for ``BallAttack``. The official code attacks with norms=train.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        noise: Annotated[float, "x >= 0"] = 2.0,
        step_size: Annotated[float, "x >= 0"] | str | None = None,
        objective: Literal["ce", "kl"] = "ce",
        norms: Literal["eval", "train"] = "eval",
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, objective=objective, norms=norms, bf16=bf16)
        self.noise = noise
        self.step_size = float(as_fraction(eps if step_size is None else step_size))

    def search(self, victim: Victim, image: Tensor, label: Tensor, draw: Draw) -> Found:
        raised = self.raised(victim, image, label)
        start = self.noise * self.eps * (2 * draw.uniform(image, "attack.start") - 1)
        noisy = (image + start).clamp(0.0, 1.0)
        gradient, _, logits = victim.gradient(noisy, raised)
        low, high = box(image, self.noise * self.eps + self.step_size)  # clips to [0, 1]; the rest is for rounding
        moved = (noisy + self.step_size * gradient.sign()).clamp(low, high)
        return Found(moved, (logits.argmax(1) == hard(label)).long())
