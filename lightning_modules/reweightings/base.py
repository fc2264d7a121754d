"""What reweightings that look at the whole batch share."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step, Update
from lightning_modules.names import unknown_name
from lightning_modules.part import Context, Reweighting
from lightning_modules.reweightings.record import Record


class BatchWeights(Reweighting):
    """One coefficient for each sample of the whole update; a subclass defines ``weigh``.

    It stands before every per-sample term of the loss, or before those that ``weighed`` names. Before ``start_epoch``,
    and for an update without a sample, no term is named, which is the plain mean.

    Args:
        start_epoch: 0-based; uniform before it.
    """

    needs_all_losses = True

    def __init__(self, *, start_epoch: Annotated[int, "x >= 0"] = 0) -> None:
        super().__init__()
        self.start_epoch = start_epoch
        self.record = Record()

    def setup(self, context: Context) -> None:
        """Refuse a start after the end."""
        if self.start_epoch >= context.max_epochs:
            raise ValueError(
                f"{type(self).__name__} can never act: start_epoch={self.start_epoch} (0-based) lies behind the "
                f"{context.max_epochs} epochs of this run; lower it, or raise trainer.max_epochs"
            )

    def active(self, step: Step) -> bool:
        """Whether samples are weighed in this update."""
        return step.epoch >= self.start_epoch

    def weighed(self, losses: dict[str, Tensor]) -> list[str]:
        """Names of the terms that the coefficients are for."""
        return list(losses)

    def weigh(self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        """Coefficients ``[B]`` in floating point; uniform ones would be 1 / B."""
        raise NotImplementedError(f"{type(self).__name__} must define weigh(losses, outputs, batch, step)")

    def forward(
        self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step
    ) -> dict[str, Tensor]:
        if not self.active(step) or not any(len(loss_B) for loss_B in losses.values()):
            return {}
        names = self.weighed(losses)
        with torch.no_grad():
            coefficient_B = self.weigh(losses, outputs, batch, step)
            if step.pass_number == 0:
                self.record.count(step, coefficient_B)
        return {name: coefficient_B.to(losses[name].dtype) for name in names}

    def commit(self, result: Update, step: Step) -> None:
        """Add up what this update did."""
        self.record.commit(step)

    def end_epoch(self) -> dict[str, float]:
        """Effective sample size as a share of the batch, and the sum of the coefficients; means over the epoch."""
        return self.record.read()

    def report(self) -> dict[str, float]:
        return self.record.report()

    def acted(self) -> bool:
        return self.record.acted()


def chosen(losses: dict[str, Tensor], term: str | None) -> Tensor:
    """``[B]`` the term of this name; without a name the sum of all.

    Raises:
        ValueError: the loss has no such term for each sample.
    """
    if term is None:
        return torch.stack(list(losses.values())).sum(0)
    return losses[known(losses, term)]


def known(losses: dict[str, Tensor], term: str) -> str:
    """The name, if the loss has such a term for each sample.

    Raises:
        ValueError: it has none.
    """
    if term not in losses:
        raise ValueError(unknown_name("reweighting.term", term, losses))
    return term
