"""How gradients of several terms stand to that of the loss, without a host read before the epoch ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kernels.batch import Step
from kernels.gradient_alignment import Products
from lightning_modules.distributed import total_over_processes


class Agreement(nn.Module):
    """Sums over updates, or over samples: counted as gradients are compared, added up when the update has happened.

    For each term (cosines, conflicts, comparisons of two gradients that are not zero), of the epoch and of the run. Of
    several processes each counts what it compared, and all agree at the end of an epoch. What an update without commit
    counted is forgotten.
    """

    differs_between_processes = True

    epoch_sums: Tensor
    run_sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._update, self._pending = -1, torch.zeros(0)

    def watch(self, names: Sequence[str]) -> None:
        """Make room for these terms."""
        self.names = list(names)
        self.register_buffer("epoch_sums", torch.zeros(len(names), 3, dtype=torch.float64))
        self.register_buffer("run_sums", torch.zeros(len(names), 3, dtype=torch.float64))

    def count(self, step: Step, products: Mapping[str, Products]) -> None:
        """Add comparisons of the terms with the anchor, one each or one for each row; others have none."""
        if self._update != step.update:
            self._update, self._pending = step.update, torch.zeros_like(self.epoch_sums)
        for name, product in products.items():
            present = (product.anchor > 0) & (product.other > 0)
            values = (product.cosine(), product.both < 0, present)
            sums = [value.sum(dtype=torch.float64).to(self._pending.device) for value in values]
            self._pending[self.names.index(name)] += torch.stack(sums)

    def commit(self, step: Step) -> None:
        """Close an update."""
        if self._update == step.update:
            self.epoch_sums += self._pending
        self._update = -1

    def read(self) -> dict[str, float]:
        """Mean cosine and share of conflicts of the epoch for each term, over all processes; resets the epoch."""
        totals = total_over_processes(self.epoch_sums)
        rows = totals.tolist()
        self.run_sums += totals
        self.epoch_sums.zero_()
        columns: dict[str, float] = {}
        for name, (cosine, conflicts, count) in zip(self.names, rows, strict=True):
            columns |= {f"{name}/cosine": cosine / max(count, 1), f"{name}/conflict_share": conflicts / max(count, 1)}
        return columns

    def report(self) -> dict[str, float]:
        """The share of conflicts over the whole run, for each term."""
        sums = zip(self.names, self.run_sums.tolist(), strict=True)
        return {f"{name}/conflict_share": conflicts / max(count, 1) for name, (_, conflicts, count) in sums}

    def compared(self) -> bool:
        return bool(self.run_sums[:, 2].any())
