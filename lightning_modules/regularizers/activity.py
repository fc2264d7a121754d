"""Counts what a per-sample regularizer did, without a host read before the epoch ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.batch import Step
from lightning_modules.distributed import largest_over_processes, total_over_processes


class Activity(nn.Module):
    """Sums over samples and updates: counted where the term is computed, added up when the update has happened.

    ``epoch_sums`` holds (term, samples with a term, samples seen); ``run_sums`` holds (updates committed, updates with
    a non-zero term, first epoch with one or -1). Both persistent, so that a resumed run reports what the uninterrupted
    one would. Of several processes each counts its own samples, and all agree at the end of an epoch. What an update
    without commit counted is forgotten.
    """

    differs_between_processes = True  # each counts its own samples; ``read`` adds them up

    epoch_sums: Tensor
    run_sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epoch_sums", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("run_sums", torch.tensor([0, 0, -1], dtype=torch.int64))
        self._update, self._pending = -1, torch.zeros(0)  # sums of this one update; nothing that is saved

    def count(self, step: Step, term_B: Tensor, present_B: Tensor | None = None) -> None:
        """Add one micro-batch: the unweighted term of each sample and which samples have one (all by default).

        Further passes over an update are not counted.
        """
        if step.pass_number:
            return
        total = term_B.sum(dtype=torch.float64)
        seen = torch.full_like(total, float(term_B.shape[0]))
        present = seen if present_B is None else present_B.sum(dtype=torch.float64)
        sums = torch.stack([total, present, seen, total.abs()])
        self._pending = self._pending + sums if self._update == step.update else sums
        self._update = step.update

    def commit(self, step: Step) -> None:
        """Close an update: add its sums; did the term differ from zero in it?"""
        updates, active, first = self.run_sums.unbind()
        if self._update == step.update:
            self.epoch_sums += self._pending[:3]
            nonzero = (self._pending[3] > 0).to(torch.int64)
            first = torch.where((first < 0) & (nonzero > 0), torch.full_like(first, step.epoch), first)
            active = active + nonzero
        self.run_sums.copy_(torch.stack([updates + 1, active, first]))
        self._update = -1

    def read(self, mean_name: str, share_name: str) -> dict[str, float]:
        """The epoch's mean term over the samples of all processes that had one, and their share; resets the epoch."""
        total, present, seen = total_over_processes(self.epoch_sums).tolist()
        self.epoch_sums.zero_()
        self._agree()
        return {mean_name: total / present if present else 0.0, share_name: present / seen if seen else 0.0}

    def _agree(self) -> None:
        """The run's counts are those of the process in which the term acted most, and its first epoch is the first."""
        updates, active, first = self.run_sums.unbind()
        sooner = torch.where(first < 0, torch.iinfo(first.dtype).min, -first)
        active, sooner = largest_over_processes(torch.stack([active, sooner])).unbind()
        first = torch.where(sooner == torch.iinfo(first.dtype).min, -1, -sooner)
        self.run_sums.copy_(torch.stack([updates, active, first]))

    def report(self) -> dict[str, float]:
        """First epoch (0-based) with a non-zero term, and the share of the run's updates that had one."""
        updates, active, first = self.run_sums.tolist()
        return {"first_active_epoch": first, "active_step_share": active / updates if updates else 0.0}

    def acted(self) -> bool:
        return int(self.run_sums[1]) > 0
