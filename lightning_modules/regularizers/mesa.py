"""MESA: memory-efficient sharpness-aware training.

Du, Zhou, Feng, Tan, Zhou. "Sharpness-Aware Training for Free". NeurIPS 2022, arXiv 2205.14083.
Official code: AngusDujw/SAF. Departures, with their reasons, are listed in docs/saf.md.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step, Update
from kernels.trajectory import trajectory_kl
from lightning_modules.average import Average
from lightning_modules.part import Context, Regularizer, split_view
from lightning_modules.regularizers.activity import Activity
from lightning_modules.regularizers.schedule import EpochWindow


class MESA(Regularizer):
    """``weight * tau^2 * KL(EMA network || network)`` on the same images, for each sample.

    The teacher is an exponential moving average of every parameter and floating buffer (norm statistics included),
    started as a copy: ``v <- decay * v + (1 - decay) * theta`` after every update. It predicts in eval mode without
    gradient, so its norm statistics change only through the average. It sees the very images of the network, mixed or
    attacked ones included.

    Args:
        weight: lambda; 0.8 in the official README (0.3 is a script default).
        temperature: tau.
        decay: beta; official default 0.9998.
        start_epoch: the term is on for ``start_epoch < epoch < end_epoch``, 0-based, both strict. A float in (0, 1) is
            a share of the run. The average runs from the first update on.
        end_epoch: None for the end of the run.
        scale_tau2: multiply by tau^2 as the official code does.
        view: the view whose predictions it compares; None for the prediction of the loss.
    """

    needs = frozenset({"logits"})
    does = frozenset({"extra_forward"})
    refuses = {"mixes_features": "its teacher would see unmixed feature maps where the network sees mixed ones"}

    def __init__(
        self,
        *,
        weight: Annotated[float, "x >= 0"] = 0.8,
        temperature: Annotated[float, "x > 0"] = 5.0,
        decay: Annotated[float, "0 <= x <= 1"] = 0.9998,
        start_epoch: Annotated[int, "x >= -1"] | Annotated[float, "0 < x < 1"] = 5,
        end_epoch: Annotated[int, "x >= 1"] | Annotated[float, "0 < x < 1"] | None = None,
        scale_tau2: bool = True,
        view: str | None = None,
    ) -> None:
        super().__init__(view=view)
        self.weight, self.temperature, self.decay, self.scale_tau2 = weight, temperature, decay, scale_tau2
        self.window = EpochWindow("MESA", start_epoch, end_epoch)
        self.average: Average | None = None
        self.activity = Activity()

    def setup(self, context: Context) -> None:
        """Copy the network and refuse a schedule in which the term can never be on."""
        if self.weight > 0:
            self.window.resolve(context.max_epochs)
            self.average = Average(context.network_of(split_view(self.view)[0]))

    def active(self, epoch: int) -> bool:
        """Whether the term is on in this epoch."""
        return self.weight > 0 and epoch in self.window

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor | None:
        if self.average is None or not self.active(step.epoch):
            return None
        with torch.no_grad():
            past_BC = self.average(batch.shown(split_view(self.view)[1])).class_scores
        kl_B = trajectory_kl(outputs[self.view].class_scores, past_BC, self.temperature, scale=self.scale_tau2)
        self.activity.count(step, kl_B.detach())
        return self.weight * kl_B

    def commit(self, result: Update, step: Step) -> None:
        """Move the average towards the updated network."""
        if self.average is not None:
            self.activity.commit(step)
            self.average.update(step.network_of(split_view(self.view)[0]), self.decay)

    def end_epoch(self) -> dict[str, float]:
        """Mean divergence over the epoch."""
        diagnostics = self.activity.read("trajectory_kl", "share")
        return {"trajectory_kl": diagnostics["trajectory_kl"]}

    def report(self) -> dict[str, float]:
        return self.activity.report()

    def acted(self) -> bool:
        return self.weight == 0 or self.activity.acted()
