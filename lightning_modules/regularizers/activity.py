"""Counts what a per-sample regularizer did, without a host read before the epoch ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.distributed import total_over_processes


class Activity(nn.Module):
    """Sums over samples and updates, kept where the term is computed.

    ``epoch_sums`` holds (term, samples with a term, samples seen, pending term of this update); ``run_sums`` holds
    (updates committed, updates with a non-zero term, first epoch with one or -1). All persistent, so that a resumed
    run reports what the uninterrupted one would.
    """

    epoch_sums: Tensor
    run_sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epoch_sums", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("run_sums", torch.tensor([0, 0, -1], dtype=torch.int64))

    def count(self, term_B: Tensor, present_B: Tensor | None = None) -> None:
        """Add one micro-batch: the unweighted term of each sample and which samples have one (all by default)."""
        total = term_B.sum(dtype=torch.float64)
        seen = float(term_B.shape[0])
        present = torch.full_like(total, seen) if present_B is None else present_B.sum(dtype=torch.float64)
        self.epoch_sums += torch.stack([total, present, torch.full_like(total, seen), total.abs()])

    def commit(self, epoch: int) -> None:
        """Close an update: did the term differ from zero in it?"""
        nonzero = (self.epoch_sums[3] > 0).to(torch.int64)
        updates, active, first = self.run_sums.unbind()
        first = torch.where((first < 0) & (nonzero > 0), torch.full_like(first, epoch), first)
        self.run_sums.copy_(torch.stack([updates + 1, active + nonzero, first]))
        self.epoch_sums[3] = 0

    def read(self, mean_name: str, share_name: str) -> dict[str, float]:
        """The epoch's mean term over the samples of all processes that had one, and their share; resets the epoch."""
        total, present, seen, _ = total_over_processes(self.epoch_sums).tolist()
        self.epoch_sums.zero_()
        return {mean_name: total / present if present else 0.0, share_name: present / seen if seen else 0.0}

    def report(self) -> dict[str, float]:
        """First epoch (0-based) with a non-zero term, and the share of the run's updates that had one."""
        updates, active, first = self.run_sums.tolist()
        return {"first_active_epoch": first, "active_step_share": active / updates if updates else 0.0}

    def acted(self) -> bool:
        return int(self.run_sums[1]) > 0
