"""The hypergradient of bilevel adversarial training: through the attack too, by implicit differentiation.

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311
("compositional implicit differentiation").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.barrier import bounds
from kernels.batch import Batch
from kernels.implicit_gradient import cross_term
from lightning_modules.attacks.barrier import Barrier
from lightning_modules.attacks.victim import Victim
from lightning_modules.gradients.base import Gradient, Seat, sum_terms
from lightning_modules.gradients.kinks import kinks, kinks_of
from lightning_modules.norm_statistics import norm_modules
from lightning_modules.part import Context


class Implicit(Gradient):
    """The gradient of the sum of terms, plus what the weights change through the perturbations they are attacked with.

        sum_i p_i grad_theta l_i  -  (d2 lbar_i / dtheta dd) (d2 lbar_i / dd2)^-1  p_i grad_d l_i

    ``p_i grad_d l_i`` is the gradient of all terms by the attacked image, whatever loss, coefficients and regularizers
    they are of; the lower level is that of ``attack=barrier``, with norms in eval mode and the statistics that the
    attack saw. The second term vanishes with the attack's ``c``. Beside the update it costs a gradient by the images,
    and a forward and two backwards of the lower level.

    Only networks that are twice differentiable have it. A piecewise-linear one has no second derivative on the kinks,
    and on these the attack's solutions lie; at build such a network is refused.

    Args:
        hessian: ``whole`` is the lower level's own, which makes the gradient exact at a solution; ``barrier`` the
            barrier's part of it, a diagonal, which the paper takes for piecewise-linear networks. The latter is wrong
            where a solution is inside of the box and the network bends, however small ``c`` is.
        solver_steps: of conjugate gradients for ``whole``; each costs a second derivative of the network.
        start_epoch: 0-based; before it the gradient is that of the sum alone. The attack sees the network by the
            running norm statistics, and those of the first updates are not yet its own.

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
    ) -> None:
        super().__init__()
        self.hessian, self.solver_steps, self.start_epoch = hessian, solver_steps, start_epoch
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
        statistics = _statistics(network)  # those the attack saw: forwards of the update move them
        for one in seat.passes():
            total = sum_terms(one.terms)
            with _as_attacked(network, statistics) as victim:
                through = self._through(attack, victim, one.batch, total)
            seat.backward(total + through.to(total.dtype))

    def _through(self, attack: Barrier, victim: Victim, batch: Batch, total: Tensor) -> Tensor:
        """A scalar with the gradient of ``total`` that goes through the attack of this micro-batch."""
        (outer,) = torch.autograd.grad(total, batch.image, retain_graph=True, allow_unused=True)
        if outer is None or batch.clean_image is None:
            raise ValueError(
                "gradient=implicit: no term depends on the attacked image, so that there is nothing to differentiate "
                "through; let the loss read the view main or adversarial, or take gradient=sum"
            )
        if torch.finfo(batch.image.dtype).bits < 32:
            raise ValueError(
                f"gradient=implicit got images in {batch.image.dtype}, whose perturbations are rounded away from the "
                "solution of the attack; give them in float32 (trainer.precision=32-true or bf16-mixed)"
            )
        clean, dtype = batch.clean_image.double(), torch.promote_types(batch.image.dtype, torch.float32)
        objective = attack.raised(victim, batch.clean_image, batch.label)

        def raised(perturbation: Tensor) -> Tensor:
            logits = victim.logits((clean + perturbation).to(dtype))
            if not self._looked:
                _check_smooth(kinks(logits, perturbation))
                self._looked = True
            return objective(logits)

        low, high = bounds(batch.clean_image, attack.eps)
        steps = self.solver_steps if self.hessian == "whole" else 0
        rounding = 10 * torch.finfo(dtype).eps
        return cross_term(raised, batch.image.double() - clean, low, high, attack.c, outer, steps, rounding)


class _Differentiable(Victim):
    """A victim whose logits keep their graph, also by the weights."""

    def logits(self, image: Tensor) -> Tensor:
        return self._logits(image)


@contextmanager
def _as_attacked(network: nn.Module, statistics: dict[str, Tensor]) -> Iterator[Victim]:
    """The function that the attack climbed, to be derived twice: norms in eval mode, with these statistics.

    The network itself is called, because a compiled one has no second derivative, and neither has fused attention; in
    the precision of its weights, because a second derivative of rounded activations is noise.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with sdpa_kernel([SDPBackend.MATH]), torch.autocast(next(network.parameters()).device.type, enabled=False):
            state = {**dict(network.named_parameters()), **statistics}
            state = {name: _wide(value) for name, value in state.items()}
            yield _Differentiable(lambda image: functional_call(network, state, (_wide(image),)))
    finally:
        for module, mode in modes:
            module.training = mode


def _wide(value: Tensor) -> Tensor:
    """In at least float32: a second derivative of half precision is noise."""
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of norms by name."""
    norms = {id(norm) for norm in norm_modules(network)}
    return {
        f"{name}.{own}".removeprefix("."): buffer.clone()
        for name, module in network.named_modules()
        if id(module) in norms
        for own, buffer in module.named_buffers(recurse=False)
    }


def _check_smooth(found: list[str]) -> None:
    if found:
        raise ValueError(
            "these parts cannot work together:\n- gradient=implicit cannot be combined with this backbone: it computes "
            f"with {', '.join(found)}, which has no second derivative where its pieces meet, and there the solutions "
            "of the attack lie; take a smooth backbone (SiLU, GELU, tanh), or gradient=sum"
        )
