"""What attacks in the ball of a norm share: the seat in the training step, and the search that evaluators call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kernels.batch import Batch, Step
from kernels.comp_sum import margin_shift
from kernels.counter_rng import fold, uniform_like
from kernels.perturbation import Norm, as_fraction
from lightning_modules.attacks.victim import Objective, Victim, attacked
from lightning_modules.part import Attack


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of each sample, which depend on nothing but these: not on the batch, the process or what was drawn
    before.

    Attributes:
        seed: the run's.
        number: of the update, or of the restart.
        index: ``[B]`` position of each sample in its data set.
        view: ``[B]`` earlier visits of the sample, or one number.
    """

    seed: int
    number: int
    index: Tensor
    view: Tensor | int = 0

    def uniform(self, image: Tensor, stream: str) -> Tensor:
        """In (0, 1), like ``image``."""
        return uniform_like(image, self.seed, self.number, self.index, self.view, stream)

    def normal(self, image: Tensor, stream: str) -> Tensor:
        """Standard normal, like ``image``; within 5.3, because there are 2**23 uniform numbers."""
        return torch.erfinv(2 * self.uniform(image, stream) - 1).mul_(2**0.5)

    def again(self, restart: int) -> Draw:
        """Those of another restart."""
        return replace(self, seed=fold(self.seed, restart))

    def of(self, rows: Tensor) -> Draw:
        """Those of some of the samples."""
        view = self.view[rows] if isinstance(self.view, Tensor) else self.view
        return replace(self, index=self.index[rows], view=view)


@dataclass(frozen=True, slots=True)
class Found:
    """What an attack found.

    Attributes:
        image: ``[B, C, H, W]`` in the ball and in [0, 1].
        survived_steps: ``[B]`` at the start of how many steps the sample was still classified right; None where an
            attack does not count them.
    """

    image: Tensor
    survived_steps: Tensor | None = None


class BallAttack(Attack):
    """An attack in the ball of radius ``eps`` around each image, in pixel space.

    A subclass defines ``search``. In the training step the network is attacked by its logits in the view ``main``,
    before any view is forwarded.

    Args:
        eps: radius of the ball, a number or a fraction such as 8/255; pixels are in [0, 1].
        norm: ``linf`` or ``l2``.
        objective: what is raised: ``ce`` the cross-entropy of the label, ``kl`` the divergence from the prediction of
            the clean image (TRADES), ``margin_shift`` by how much the margins of the label move (comp-sum).
        norms: ``eval`` attacks the network as it predicts, ``train`` with batch statistics (see ``attacked``).
        bf16: forwards of the attack in bfloat16.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        *,
        eps: Annotated[float, "x >= 0"] | str = "8/255",
        norm: Norm = "linf",
        objective: Literal["ce", "kl", "margin_shift"] = "ce",
        norms: Literal["eval", "train"] = "eval",
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.norm, self.norms, self.bf16 = float(as_fraction(eps)), norm, norms, bf16
        self.objective = objective

    def search(self, victim: Victim, image: Tensor, label: Tensor, draw: Draw) -> Found:
        """The worst images that it finds.

        Args:
            victim: the network.
            image: ``[B, C, H, W]`` in [0, 1].
            label: ``[B]`` classes, or ``[B, C]`` soft labels.
            draw: random numbers of these samples.
        """
        raise NotImplementedError(f"{type(self).__name__} must define search(victim, image, label, draw)")

    def forward(self, batch: Batch, step: Step) -> Batch:
        draw = Draw(step.seed, step.update, batch.index, 0 if batch.view is None else batch.view)
        with attacked(step.network, step.forward, norms=self.norms, bf16=self.bf16) as victim:
            found = self.search(victim, batch.image, batch.label, draw)
        return batch.replace(image=found.image, clean_image=batch.image, survived_steps=found.survived_steps)

    def raised(self, victim: Victim, image: Tensor, label: Tensor) -> Objective:
        """What the attack raises for these samples; the prediction of the clean images is made once."""
        if self.objective == "kl":
            clean = log_softmax(victim.logits(image), 1)
            return lambda logits: kl_div(log_softmax(logits, 1), clean, reduction="none", log_target=True).sum(1)
        if self.objective == "margin_shift":
            unmoved = victim.logits(image)
            return lambda logits: margin_shift(unmoved, logits, label)
        return lambda logits: cross_entropy(logits, label, reduction="none")


def hard(label: Tensor) -> Tensor:
    """``[B]`` the class of each sample, the largest share of a soft label."""
    return label if label.ndim == 1 else label.argmax(1)
