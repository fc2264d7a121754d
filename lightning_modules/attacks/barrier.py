"""The smoothed lower level of bilevel adversarial training: a log barrier in place of a projection.

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311. How the
paper takes its steps, and its values of c, are not known; the step rule and the defaults are ours.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from kernels.barrier import barrier, bounds, linear_minimum, moved_inside
from lightning_modules.attacks.base import BallAttack, Draw, Found
from lightning_modules.attacks.victim import Objective, Victim


class Barrier(BallAttack):
    """Minimises ``-l(x + d) - c sum [log(b - d) + log(d - a)]`` over each sample's L-inf box ``a < d < b``.

    It starts in the middle of the box. A step goes ``step_size`` of the way to where the linearised loss plus the whole
    barrier is least, a closed form for each pixel; near the solution this is the gradient step scaled by the barrier's
    Hessian, and for ``c -> 0`` a sign step to the border. It is a direction of descent and stays strictly inside. A
    sample whose value would rise stays where it is and tries half the way next. Every sample is solved by itself, with
    norms in eval mode, and without random numbers: the solution is a function of the weights, which
    ``gradient=implicit`` differentiates.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        c: weight of the barrier; smaller comes nearer to the border.
        steps: each costs a forward and a backward, and so does the start.
        step_size: share of the way, halved for a sample as long as its value would rise.
        objective, bf16: as for ``BallAttack``.
    """

    does: ClassVar[frozenset[str]] = BallAttack.does | {"barrier"}

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        c: Annotated[float, "x > 0"] = 1e-4,
        steps: Annotated[int, "x >= 0"] = 10,
        step_size: Annotated[float, "0 < x <= 1"] = 1.0,
        objective: Literal["ce", "kl"] = "ce",
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, objective=objective, bf16=bf16)
        self.c, self.steps, self.step_size = c, steps, step_size

    def search(self, victim: Victim, image: Tensor, label: Tensor, draw: Draw) -> Found:
        if self.eps == 0:
            return Found(image)
        raised = self.raised(victim, image, label)
        low, high = bounds(image, self.eps)
        here = (low + high) / 2
        value, gradient = self._at(victim, image, here, raised)
        share = torch.full_like(value, self.step_size)
        rounding = 8 * torch.finfo(torch.bfloat16 if self.bf16 else image.dtype).eps
        for _ in range(self.steps):
            way = linear_minimum(gradient, low, high, self.c) - here
            there = here + share[:, None, None, None] * way
            reached, slope = self._at(victim, image, there, raised)
            better = reached <= value + rounding * (1 + value.abs())
            rows = better[:, None, None, None]
            here, gradient = torch.where(rows, there, here), torch.where(rows, slope, gradient)
            value = torch.where(better, reached, value)
            share = torch.where(better, (2 * share).clamp(max=self.step_size), share / 2)
        return Found(moved_inside(image, here, self.eps))

    def _at(self, victim: Victim, image: Tensor, here: Tensor, raised: Objective) -> tuple[Tensor, Tensor]:
        """``[B]`` the value of the lower level, and the gradient of its loss, in float64."""
        gradient, value, _ = victim.gradient(moved_inside(image, here, self.eps), raised)
        return self.c * barrier(here, *bounds(image, self.eps)) - value.double(), -gradient.double()
