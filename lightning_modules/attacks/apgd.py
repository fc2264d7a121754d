"""Auto-PGD: projected gradient ascent with momentum, whose step size follows from how the objective rises.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
ICML 2020, arXiv 2003.01690, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.perturbation import norm_of
from lightning_modules.attacks.until_fallen import Standing, UntilFallen
from lightning_modules.attacks.victim import Victim

MOMENTUM = 0.75  # alpha of the paper: share of the projected step


@dataclass
class Climb(Standing):
    """A run of APGD.

    Attributes:
        moved, before: like ``image``, the last two iterates.
        gradient, here: at ``moved``, and the objective ``[B]`` there.
        best_gradient: at ``best``.
        size: ``[B, 1, 1, 1]`` the step size.
        rises: ``[B]`` steps since the last checkpoint that raised the objective.
        halved: ``[B]`` whether the step size was halved at the last checkpoint.
        value_then: ``[B]`` the best value at the last checkpoint.
    """

    moved: Tensor
    before: Tensor
    gradient: Tensor
    here: Tensor
    best_gradient: Tensor
    size: Tensor
    rises: Tensor
    halved: Tensor
    value_then: Tensor


def checkpoints(steps: int) -> list[int]:
    """``w_j = ceil(p_j steps)`` with ``p_1 = 0.22``, ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    found, before, share = set(), 0, 22  # in hundredths: 0.22 * 100 is above 22 in floating point
    while share <= 100:
        found.add(-(-share * steps // 100))
        before, share = share, share + max(share - before - 3, 6)
    return sorted(found - {0})


class APGD(UntilFallen[Climb]):
    """``z = P(x + size * direction)``, ``x <- P(x + 0.75 (z - x) + 0.25 (x - x_before))``, beginning with size 2 eps.

    At each checkpoint a sample halves its step size and goes back to its best image where fewer than ``rho`` of the
    steps since the last one raised the objective, or where neither step size nor best value have changed since then.
    The official code departs from the paper in details, and this follows the paper: the first step is compared with the
    start, a step after going back with the best value, the second condition holds at the first checkpoint too, and the
    first one is strict.

    A subclass defines ``criterion``. The start is on the border of the ball, as in the official code.

    Args:
        rho: share of rising steps that keeps the step size.
        eps, norm, steps, targets, restarts, bf16: as for ``UntilFallen``.
    """

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Literal["linf", "l2"] = "linf",
        steps: Annotated[int, "x >= 1"] = 100,
        rho: Annotated[float, "0 <= x <= 1"] = 0.75,
        targets: Annotated[int, "x >= 1"] | None = None,
        restarts: Annotated[int, "x >= 1"] = 1,
        bf16: bool = False,
    ) -> None:
        super().__init__(eps=eps, norm=norm, steps=steps, targets=targets, restarts=restarts, bf16=bf16)
        self.rho = rho
        reached = checkpoints(steps)
        self._since = {at: at - last for last, at in zip([0, *reached], reached, strict=False)}

    def criterion(self, logits_BC: Tensor, label_B: Tensor, target_B: Tensor) -> Tensor:
        """``[B]`` what is raised."""
        raise NotImplementedError(f"{type(self).__name__} must define criterion(logits, label, target)")

    def start(self, victim: Victim, standing: Standing) -> Climb:
        held = {field.name: getattr(standing, field.name) for field in fields(standing)}
        moved, rises = self._border(standing), torch.zeros_like(standing.row)
        size = torch.full_like(moved[:, :1, :1, :1], 2 * self.eps)
        start = Climb(
            **held, moved=moved, before=moved, gradient=moved, here=standing.value, best_gradient=moved, size=size,
            rises=rises, halved=standing.fallen, value_then=standing.value,
        )  # fmt: skip
        self._measure(victim, start)
        start.best_gradient, start.value_then, start.rises = start.gradient, start.value, rises
        return start

    def advance(self, victim: Victim, state: Climb, step: int) -> None:
        direction = state.gradient.sign()
        if self.norm == "l2":
            direction = (state.gradient / norm_of(state.gradient)).to(state.image.dtype)
        aimed = self.project(state, state.moved + state.size * direction)
        if step:
            mixed = MOMENTUM * (aimed - state.moved) + (1 - MOMENTUM) * (state.moved - state.before)
            aimed = self.project(state, state.moved + mixed)
        state.before, state.moved = state.moved, aimed
        self._measure(victim, state)
        if since := self._since.get(step + 1):
            self._check(state, since)

    def _border(self, standing: Standing) -> Tensor:
        """A random image on the border of the ball."""
        if self.norm == "linf":
            drawn = 2 * standing.draw.uniform(standing.image, "apgd.start") - 1
            direction = drawn / drawn.abs().amax((1, 2, 3), keepdim=True)
        else:
            drawn = standing.draw.normal(standing.image, "apgd.start")
            direction = (drawn / norm_of(drawn)).to(drawn.dtype)
        return self.project(standing, standing.image + self.eps * direction)

    def _measure(self, victim: Victim, state: Climb) -> None:
        """Gradient and objective at the iterate, which is offered."""
        label, target = state.label, state.target
        state.gradient, here, logits = victim.gradient(state.moved, lambda z: self.criterion(z, label, target))
        taken = state.offer(state.moved, here, logits.argmax(1) != label)
        state.best_gradient = torch.where(taken[:, None, None, None], state.gradient, state.best_gradient)
        state.rises = state.rises + (here > state.here)
        state.here = here

    def _check(self, state: Climb, since: int) -> None:
        """The two conditions of the paper, ``since`` steps after the last checkpoint."""
        halved = (state.rises < self.rho * since) | (~state.halved & (state.value_then == state.value))
        wide = halved[:, None, None, None]
        state.size = torch.where(wide, state.size / 2, state.size)
        state.moved = torch.where(wide, state.best, state.moved)
        state.gradient = torch.where(wide, state.best_gradient, state.gradient)
        state.here = torch.where(halved, state.value, state.here)
        state.halved, state.value_then, state.rises = halved, state.value, torch.zeros_like(state.rises)
