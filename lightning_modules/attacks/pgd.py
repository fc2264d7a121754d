"""PGD: projected gradient ascent.

Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018,
arXiv 1706.06083.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.perturbation import as_fraction, box, norm_of, project_l2
from lightning_modules.attacks.base import BallAttack, Draw, Found, hard
from lightning_modules.attacks.victim import Objective, Victim


class PGD(BallAttack):
    """``x <- P(x + step_size sign(grad))`` for L-inf, ``x <- P(x + step_size grad / ||grad||)`` for L2.

    The gradient is that of each sample by itself. With ``restarts``, the image with the highest objective is kept, a
    misclassified one before others.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: K.
        step_size: of each step, a number or a fraction.
        start: ``uniform`` in the ball, ``normal`` with standard deviation 0.001 (TRADES, MART), or ``none``.
        restarts: independent searches.
        targeted: lower the cross-entropy of the class after the true one (modulo C), in place of raising that of the
            true one.
        objective, norms, bf16: as for ``BallAttack``.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Literal["linf", "l2"] = "linf",
        steps: Annotated[int, "x >= 0"] = 10,
        step_size: Annotated[float, "x >= 0"] | str = "2/255",
        start: Literal["uniform", "normal", "none"] = "uniform",
        restarts: Annotated[int, "x >= 1"] = 1,
        targeted: bool = False,
        objective: Literal["ce", "kl"] = "ce",
        norms: Literal["eval", "train"] = "eval",
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, objective=objective, norms=norms, bf16=bf16)
        self.steps, self.step_size, self.start = steps, float(as_fraction(step_size)), start
        self.restarts, self.targeted = restarts, targeted
        if restarts > 1 and start == "none":
            raise ValueError(f"restarts={restarts} without a random start are all the same; set start=uniform")
        if targeted and objective == "kl":
            raise ValueError("targeted=true goes towards a class, which objective=kl does not know; set objective=ce")

    def search(self, victim: Victim, image: Tensor, label: Tensor, draw: Draw) -> Found:
        raised = self._towards(label) if self.targeted else self.raised(victim, image, label)
        best, survived = self._climb(victim, image, label, draw, raised)
        if self.restarts == 1:
            return Found(best, survived)
        reached = _worth(victim, best, label, raised)
        for restart in range(1, self.restarts):
            found, less = self._climb(victim, image, label, draw.again(restart), raised)
            worth = _worth(victim, found, label, raised)
            better = worth > reached
            best, reached = torch.where(better[:, None, None, None], found, best), torch.maximum(worth, reached)
            survived = torch.minimum(survived, less)
        return Found(best, survived)

    def _climb(
        self, victim: Victim, image: Tensor, label: Tensor, draw: Draw, raised: Objective
    ) -> tuple[Tensor, Tensor]:
        """One search: the last image, and at the start of how many steps each sample was classified right."""
        right, survived = hard(label), torch.zeros(len(image), dtype=torch.int64, device=image.device)
        low, high = box(image, self.eps) if self.norm == "linf" else (image, image)
        moved = self._project(image, self._started(image, draw), low, high)
        for _ in range(self.steps):
            gradient, _, logits = victim.gradient(moved, raised)
            survived += logits.argmax(1) == right
            step = gradient.sign() if self.norm == "linf" else (gradient / norm_of(gradient)).to(image.dtype)
            moved = self._project(image, moved + self.step_size * step, low, high)
        return moved, survived

    def _started(self, image: Tensor, draw: Draw) -> Tensor:
        if self.start == "none":
            return image
        if self.start == "normal":
            return image + 0.001 * draw.normal(image, "attack.start")
        if self.norm == "linf":
            return image + self.eps * (2 * draw.uniform(image, "attack.start") - 1)
        direction = draw.normal(image, "attack.start")
        radius = draw.uniform(image[:, :1, :1, :1], "attack.radius") ** (1 / image[0].numel())
        return image + (self.eps * radius * direction / norm_of(direction)).to(image.dtype)

    def _project(self, image: Tensor, moved: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return moved.clamp(low, high) if self.norm == "linf" else project_l2(image, moved, self.eps)

    def _towards(self, label: Tensor) -> Objective:
        right = hard(label)
        return lambda logits: -cross_entropy(logits, (right + 1) % logits.shape[1], reduction="none")


def _worth(victim: Victim, image: Tensor, label: Tensor, raised: Objective) -> Tensor:
    """``[B]`` the objective, above every other where the sample is misclassified."""
    logits = victim.logits(image)
    return raised(logits) + (logits.argmax(1) != hard(label)) * 1e6
