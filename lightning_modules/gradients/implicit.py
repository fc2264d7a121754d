"""The hypergradient of bilevel adversarial training: through the attack too, by implicit differentiation.

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311
("compositional implicit differentiation").
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from kernels.barrier import bounds
from kernels.batch import Batch, Step, Update
from kernels.implicit_gradient import cross_term
from lightning_modules.attacks.barrier import Barrier
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.victim import Victim
from lightning_modules.distributed import total_over_processes
from lightning_modules.gradients.base import Gradient, Pass, Seat, sum_terms
from lightning_modules.gradients.kinks import kinks, kinks_of
from lightning_modules.gradients.lower_level import as_attacked, statistics_of
from lightning_modules.gradients.trust_region import Corrections, add_correction
from lightning_modules.part import Context
from lightning_modules.precision import at_least_float32


class Implicit(Gradient):
    """The gradient of the sum of terms, plus what the weights change through the perturbations they are attacked with.

        sum_i p_i grad_theta l_i  -  (d2 lbar_i / dtheta dd) (d2 lbar_i / dd2)^-1  p_i grad_d l_i

    ``p_i grad_d l_i`` is the gradient of all terms by the attacked image, whatever loss, coefficients and regularizers
    they are of; the lower level is that of ``attack=barrier``, with norms in eval mode and the statistics that the
    attack saw. The second term vanishes with the attack's ``c``. Beside the update it costs a gradient by the images,
    and a forward and two backwards of the lower level.

    The first term is always there as it is; the second is a correction to it, and gives way where it cannot be trusted.
    A sample whose ``(d2 lbar_i / dd2)^-1 p_i grad_d l_i`` is not finite has no part in it; a correction whose gradient
    is not finite is left out of the update as a whole; one that is longer than ``max_ratio`` is scaled down. At a
    solution none of this happens, for there the correction is a fraction of the direct gradient. It happens where the
    lower level is nearly flat, by norm statistics that are not yet the network's own, or far from a solution; how often
    stands in the epoch's row and in the report. The lower level is in at least float32. Images in half precision are no
    solution, because the ball has a few of their spacings; their attack is made once more, in float32.

    Only networks that are twice differentiable have it. A piecewise-linear one has no second derivative on the kinks,
    and on these the attack's solutions lie; at build such a network is refused.

    Args:
        hessian: ``whole`` is the lower level's own, which makes the gradient exact at a solution; ``barrier`` the
            barrier's part of it, a diagonal, which the paper takes for piecewise-linear networks. The latter is wrong
            where a solution is inside of the box and the network bends, however small ``c`` is.
        solver_steps: of conjugate gradients for ``whole``; each costs a second derivative of the network.
        start_epoch: 0-based; before it the gradient is that of the sum alone. The attack sees the network by the
            running norm statistics, and those of the first updates are not yet its own.
        max_ratio: largest norm of the correction, over all weights and the whole update, in norms of the direct
            gradient. Up to 1 the sum never points against the direct gradient. None is the formula as it stands.

    Raises:
        ValueError: a network that is not smooth, or a start behind the end of the run.
    """

    needs = frozenset({"barrier"})
    refuses = {
        "mixes_features": "the attack looks for the worst image of each sample alone, and the loss is of mixed feature "
        "maps; the perturbations are then no minimum that could be differentiated by the weights"
    }
    derives_by_image = True

    def __init__(
        self,
        *,
        hessian: Literal["whole", "barrier"] = "whole",
        solver_steps: Annotated[int, "x >= 1"] = 10,
        start_epoch: Annotated[int, "x >= 0"] = 1,
        max_ratio: Annotated[float, "x > 0"] | None = 1.0,
    ) -> None:
        super().__init__()
        self.hessian, self.solver_steps = hessian, solver_steps
        self.start_epoch, self.max_ratio = start_epoch, max_ratio
        self.record = Corrections()
        self._looked = False

    def setup(self, context: Context) -> None:
        if self.start_epoch >= context.max_epochs:
            raise ValueError(
                f"gradient=implicit can never act: gradient.start_epoch={self.start_epoch} (0-based) lies behind the "
                f"{context.max_epochs} epochs of this run; lower it, or raise trainer.max_epochs"
            )
        network: Any = context.network
        if context.image_size is not None:  # otherwise the first update looks
            _check_smooth(kinks_of(network, network.in_channels, context.image_size))

    def forward(self, seat: Seat) -> None:
        attack, network = seat.attack, seat.step.network
        if not isinstance(attack, Barrier):
            raise ValueError(
                f"gradient=implicit differentiates the solution of attack=barrier, and this run's attack is "
                f"{type(attack).__name__}; set attack=barrier"
            )
        if seat.step.epoch < self.start_epoch:
            for one in seat.passes():
                seat.backward(sum_terms(one.terms))
            return
        statistics = statistics_of(network)  # those the attack saw: forwards of the update move them
        parts = [self._one(seat, one, attack, statistics) for one in seat.passes()]
        correction = parts[0][0]
        for further, _ in parts[1:]:
            torch._foreach_add_(correction, further)
        seat.average(correction)
        added = add_correction(seat.parameters.values(), correction, self.max_ratio)
        left_out = torch.cat([rows for _, rows in parts]).double()
        counts = torch.stack([left_out.sum(), torch.ones_like(left_out).sum()])
        self.record.count(seat.step, added, total_over_processes(counts))

    def _one(
        self, seat: Seat, one: Pass, attack: Barrier, statistics: dict[str, Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """The correction of a micro-batch, and which samples have no part in it; its direct gradient in place."""
        total = sum_terms(one.terms)
        with as_attacked(seat.step.network, statistics) as victim:
            through, left_out = self._through(attack, victim, one.batch, total, seat.step)
            found = zip(seat.parameters.values(), seat.derive(through), strict=True)
            correction = [torch.zeros_like(p) if gradient is None else gradient for p, gradient in found]
        seat.backward(total)
        return correction, left_out

    def _through(
        self, attack: Barrier, victim: Victim, batch: Batch, total: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """A scalar with the gradient of ``total`` that goes through the attack of this micro-batch, and which samples
        have no part in it."""
        (outer,) = torch.autograd.grad(total, batch.image, retain_graph=True, allow_unused=True)
        if outer is None or batch.clean_image is None:
            raise ValueError(
                "gradient=implicit: no term depends on the attacked image, so that there is nothing to differentiate "
                "through; let the loss read the view main or adversarial, or take gradient=sum"
            )
        clean, moved = at_least_float32(batch.clean_image), batch.image.detach()
        if clean.dtype != moved.dtype:  # rounded to half precision it is no solution: the box has few spacings
            moved = attack.search(victim, clean, batch.label, Draw(step.seed, step.update, batch.index)).image
        exact, objective = clean.double(), attack.raised(victim, clean, batch.label)

        def raised(perturbation: Tensor) -> Tensor:
            logits = victim.logits((exact + perturbation).to(clean.dtype))
            if not self._looked:
                _check_smooth(kinks(logits, perturbation))
                self._looked = True
            return objective(logits)

        low, high = bounds(clean, attack.eps)
        steps = self.solver_steps if self.hessian == "whole" else 0
        rounding = 10 * torch.finfo(clean.dtype).eps
        return cross_term(raised, moved.double() - exact, low, high, attack.c, outer, steps, rounding)

    def commit(self, result: Update, step: Step) -> None:
        """Add up what became of the correction of this update."""
        self.record.commit(step)

    def end_epoch(self) -> dict[str, float]:
        """Of the epoch's updates with a correction: the mean ratio of norms as added, the share that the bound scaled
        down, and the share of samples that were left out."""
        return self.record.read()

    def report(self) -> dict[str, float]:
        return self.record.report()

    def acted(self) -> bool:
        return self.record.acted()


def _check_smooth(found: list[str]) -> None:
    if found:
        raise ValueError(
            "these parts cannot work together:\n- gradient=implicit cannot be combined with this backbone: it computes "
            f"with {', '.join(found)}, which has no second derivative where its pieces meet, and there the solutions "
            "of the attack lie; take a smooth backbone (SiLU, GELU, tanh), or gradient=sum"
        )
