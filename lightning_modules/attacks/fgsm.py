"""FGSM: one sign step.

Goodfellow, Shlens, Szegedy. "Explaining and Harnessing Adversarial Examples". ICLR 2015, arXiv 1412.6572. With a random
start: Wong, Rice, Kolter. "Fast is better than free: Revisiting adversarial training". ICLR 2020, arXiv 2001.03994.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from kernels.perturbation import as_fraction
from lightning_modules.attacks.pgd import PGD


class FGSM(PGD):
    """``x' = P(x0 + step_size sign(grad))``, ``P`` into the L-inf ball and [0, 1], ``x0`` uniform in both.

    The cheapest adversarial training: one more forward and backward an update. With too long a step, or too many
    epochs, it overfits to itself (accuracy under PGD falls to zero within an epoch): see ``NFGSM``.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        step_size: a number or a fraction; None for that of the papers: 1.25 eps from a uniform start, eps without one.
        start: ``uniform`` (Wong et al.) or ``none`` (Goodfellow et al.).
        objective, norms, bf16: as for ``BallAttack``.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        step_size: Annotated[float, "x >= 0"] | str | None = None,
        start: Literal["uniform", "none"] = "uniform",
        objective: Literal["ce", "kl"] = "ce",
        norms: Literal["eval", "train"] = "eval",
        bf16: bool = False,
    ) -> None:
        if step_size is None:
            step_size = str(as_fraction(eps) * (Fraction(5, 4) if start == "uniform" else 1))
        super().__init__(
            eps=eps, steps=1, step_size=step_size, start=start, objective=objective, norms=norms, bf16=bf16
        )
