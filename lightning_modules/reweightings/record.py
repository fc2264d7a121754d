"""What a reweighting of the whole batch did, without a host read before the epoch ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.batch import Step
from kernels.dro import effective_sample_size

#: Coefficients this near to 1 / B, as a multiple of it, are uniform: no more than rounding of float32.
UNIFORM = 1e-6


class Record(nn.Module):
    """Sums over updates: computed where the coefficients are, added up when the update has happened.

    ``epoch_sums`` holds (effective sample size, sum of the coefficients, updates that were weighed); ``run_sums`` holds
    (updates committed, updates whose coefficients were not uniform, first epoch with one or -1). Both persistent, so
    that a resumed run reports what the uninterrupted one would. Every process sees the whole batch, so all agree.
    """

    epoch_sums: Tensor
    run_sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epoch_sums", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("run_sums", torch.tensor([0, 0, -1], dtype=torch.int64))
        self._update, self._pending = -1, torch.zeros(0)  # of this one update; nothing that is saved

    def count(self, step: Step, coefficient_B: Tensor) -> None:
        """The coefficients of one update, of all samples of it."""
        exact = coefficient_B.double()
        total = exact.sum()
        uneven = ((exact * len(exact) - 1).abs().max() > UNIFORM).to(total)
        self._update = step.update
        self._pending = torch.stack([effective_sample_size(exact / total), total, torch.ones_like(total), uneven])

    def commit(self, step: Step) -> None:
        """Close an update."""
        updates, active, first = self.run_sums.unbind()
        if self._update == step.update:
            self.epoch_sums += self._pending[:3]
            uneven = self._pending[3].to(torch.int64)
            first = torch.where((first < 0) & (uneven > 0), torch.full_like(first, step.epoch), first)
            active = active + uneven
        self.run_sums.copy_(torch.stack([updates + 1, active, first]))
        self._update = -1

    def read(self) -> dict[str, float]:
        """Means over the epoch's updates that were weighed; empty without one. Resets the epoch."""
        share, total, updates = self.epoch_sums.tolist()
        self.epoch_sums.zero_()
        if not updates:
            return {}
        return {"effective_sample_share": share / updates, "coefficient_sum": total / updates}

    def report(self) -> dict[str, float]:
        """First epoch (0-based) with coefficients that were not uniform, and the share of the run's updates."""
        updates, active, first = self.run_sums.tolist()
        return {"first_active_epoch": first, "active_step_share": active / updates if updates else 0.0}

    def acted(self) -> bool:
        return int(self.run_sums[1]) > 0
