"""FAB: the nearest image of another class, along linearized borders; the targeted version of AutoAttack (FAB-T).

Croce, Hein. "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack". ICML 2020,
arXiv 1907.02044, algorithm 1; targets as in arXiv 2003.01690.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.adversarial_losses import margin_targeted
from kernels.hyperplane import onto_hyperplane
from kernels.perturbation import norm_of
from lightning_modules.attacks.until_fallen import Standing, UntilFallen
from lightning_modules.attacks.victim import Victim


@dataclass
class Walk(Standing):
    """A run of FAB; ``moved`` is the iterate, like ``image``, which may be outside of the ball."""

    moved: Tensor


class FAB(UntilFallen[Walk]):
    """Steps from the iterate and from the clean image onto the border to a target, linearized at the iterate, both
    ``eta`` times as long, and goes to a mean of the two ends; from a misclassified image back towards the clean one.

    It does not know of ``eps``: a sample has fallen when a misclassified image lies in the ball, and there its search
    ends, because nothing nearer is asked for. An image that stands is returned as it is. As in AutoAttack, a run starts
    from the clean image and has no final search along the line to it. There is nothing random in it.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        steps: towards each target.
        targets: the classes of highest logits at the clean image, the true one aside; with C classes it is
            ``min(targets, C - 1)``, with a warning.
        eta: overshooting.
        alpha_max: largest weight of the end of the step from the clean image.
        beta: share of its distance that a misclassified image keeps.
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
        targets: Annotated[int, "x >= 1"] = 9,
        eta: Annotated[float, "x >= 1"] = 1.05,
        alpha_max: Annotated[float, "0 <= x <= 1"] = 0.1,
        beta: Annotated[float, "0 < x <= 1"] = 0.9,
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, steps=steps, targets=targets, bf16=bf16)
        self.eta, self.alpha_max, self.beta = eta, alpha_max, beta

    def start(self, victim: Victim, standing: Standing) -> Walk:
        held = {field.name: getattr(standing, field.name) for field in fields(standing)}
        return Walk(**held, moved=standing.image)

    def advance(self, victim: Victim, state: Walk, step: int) -> None:
        label, target = state.label, state.target
        gradient, value, _ = victim.gradient(state.moved, lambda z: margin_targeted(z, label, target))
        moved = self._towards(state, gradient, value)
        fell = victim.logits(moved).argmax(1) != label
        state.offer(moved, state.value, fell & self._inside(state, moved))
        back = (state.image + self.beta * (moved - state.image)).clamp(0, 1)
        state.moved = torch.where(fell[:, None, None, None], back, moved)

    def _towards(self, state: Walk, gradient: Tensor, value: Tensor) -> Tensor:
        """The next iterate, in [0, 1]."""
        normal, moved, clean = (x.flatten(1).double() for x in (gradient, state.moved, state.image))
        there = value.double() + (normal * (clean - moved)).sum(1)  # the same linear function at the clean image
        step = onto_hyperplane(moved, normal, value, self.norm)
        clean_step = onto_hyperplane(clean, normal, there, self.norm)
        order = float("inf") if self.norm == "linf" else 2.0
        far, clean_far = (
            torch.linalg.vector_norm(s, order, dim=1, keepdim=True).clamp_(min=1e-8) for s in (step, clean_step)
        )
        alpha = (far / (far + clean_far)).clamp_(max=self.alpha_max)
        ahead = (1 - alpha) * (moved + self.eta * step) + alpha * (clean + self.eta * clean_step)
        return ahead.clamp_(0, 1).to(state.image.dtype).view_as(state.image)

    def _inside(self, state: Walk, moved: Tensor) -> Tensor:
        """``[B]`` whether an image is in the ball, exactly."""
        if self.norm == "linf":
            return ((moved >= state.low) & (moved <= state.high)).flatten(1).all(1)
        far = norm_of(moved.double() - state.image.double()).flatten()
        return far <= self.eps * (1 - 1e-12)  # a sum in another order is in the ball too
