"""SAF: sharpness-aware training for free.

Du, Zhou, Feng, Tan, Zhou. "Sharpness-Aware Training for Free". NeurIPS 2022, arXiv 2205.14083.
Official code: AngusDujw/SAF. Departures, with their reasons, are listed in docs/saf.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step, Update
from kernels.trajectory import trajectory_kl
from lightning_modules.distributed import gather
from lightning_modules.part import Context, Regularizer
from lightning_modules.regularizers.activity import Activity
from lightning_modules.regularizers.schedule import EpochWindow

FLOAT16_MAX = 6e4


class SAF(Regularizer):
    """``weight * tau^2 * KL(prediction of epoch e - lag || prediction now)`` for each sample.

    The raw training-mode logits of every sample are kept for ``lag`` epochs in float16, keyed by its position in the
    full training set. A row counts only when it was written exactly ``lag`` epochs ago; other samples contribute zero,
    and the mean is over the whole batch, so a partly fresh batch does not inflate the weight. At a second visit in one
    epoch the row has been overwritten and the term is zero for it.

    State: ``num_train * num_classes * lag`` float16 values plus ``num_train * lag`` int32 epochs.

    Args:
        weight: lambda; 0.3 in the official README (0.16 is a script default).
        temperature: tau.
        lag: E, how many epochs lie between the two predictions.
        start_epoch: the term is on for ``start_epoch < epoch < end_epoch``, 0-based, both strict: 5 means that epoch 6
            is the first. A float in (0, 1) is a share of the run.
        end_epoch: None for the end of the run.
        scale_tau2: multiply by tau^2 as the official code does.
        view: the view whose predictions it compares; None for the prediction of the loss.

    Example:
        >>> saf = SAF(lag=1, start_epoch=0)  # in a plain loop: setup, then call and commit each step
    """

    needs = frozenset({"index", "logits"})
    refuses = {
        "mixes_labels": "the past logits of a sample come from a mixture with another partner, so their divergence "
        "says nothing about the sample's own trajectory; use +regularizer=mesa, whose teacher sees the same mixture"
    }

    store: Tensor
    written: Tensor

    def __init__(
        self,
        *,
        weight: Annotated[float, "x >= 0"] = 0.3,
        temperature: Annotated[float, "x > 0"] = 5.0,
        lag: Annotated[int, "x >= 1"] = 3,
        start_epoch: Annotated[int, "x >= -1"] | Annotated[float, "0 < x < 1"] = 5,
        end_epoch: Annotated[int, "x >= 1"] | Annotated[float, "0 < x < 1"] | None = None,
        scale_tau2: bool = True,
        view: str | None = None,
    ) -> None:
        super().__init__(view=view)
        self.weight, self.temperature, self.lag, self.scale_tau2 = weight, temperature, lag, scale_tau2
        self.window = EpochWindow("SAF", start_epoch, end_epoch)
        self.activity = Activity()

    def setup(self, context: Context) -> None:
        """Allocate the store and refuse a schedule in which the term can never be on."""
        if self.weight == 0:
            return
        self.window.resolve(context.max_epochs, earliest=self.lag)
        shape = (self.lag, context.num_train, context.num_classes)
        self.register_buffer("store", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("written", torch.full(shape[:2], -1, dtype=torch.int32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SAF:
        """The store stays float16 whatever dtype the module is cast to (trainer.precision=64-true casts it)."""
        store = self._buffers.get("store")
        super()._apply(fn, recurse)
        if store is not None and self.store.dtype != torch.float16:
            self.store = store.to(self.store.device)
        return self

    def active(self, epoch: int) -> bool:
        """Whether the term is on in this epoch."""
        return self.weight > 0 and epoch in self.window

    def past(self, index_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Logits ``[B, C]`` recorded ``lag`` epochs ago, and ``[B]`` whether each row is exactly that old."""
        slot = epoch % self.lag
        return self.store[slot].index_select(0, index_B), self.written[slot].index_select(
            0, index_B
        ) == epoch - self.lag

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor | None:
        if not self.active(step.epoch):
            return None
        logits_BC = outputs[self.view].class_scores
        past_BC, fresh_B = self.past(batch.index, step.epoch)
        kl_B = trajectory_kl(logits_BC, past_BC, self.temperature, scale=self.scale_tau2)
        kl_B = kl_B.masked_fill(~fresh_B, 0.0)
        self.activity.count(step, kl_B.detach(), fresh_B)
        return self.weight * kl_B

    def commit(self, result: Update, step: Step) -> None:
        """Record this visit's logits in the slot that was just read."""
        if self.weight == 0:
            return
        self.activity.commit(step)
        slot = step.epoch % self.lag
        logits_BC = result.outputs[self.view].class_scores.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
        index_B, logits_BC = gather(result.batch.index, step.batch_size), gather(logits_BC, step.batch_size)
        self.store[slot].index_copy_(0, index_B, logits_BC)
        self.written[slot].index_fill_(0, index_B, step.epoch)

    def end_epoch(self) -> dict[str, float]:
        """Mean divergence and the share of fresh rows, over the epoch."""
        return self.activity.read("trajectory_kl", "fresh_share")

    def report(self) -> dict[str, float]:
        return self.activity.report()

    def acted(self) -> bool:
        return self.weight == 0 or self.activity.acted()
