"""How many training samples each class has, for parts that weigh classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kernels.batch import Step
from lightning_modules.distributed import gather, total_over_processes
from lightning_modules.part import TrainingData


class ClassCounts(nn.Module):
    """Counts of ``prepare``, which looks at the training labels once; they never change after it.

    A loop that leaves ``prepare`` out counts the classes of the updates as they come.

    Attributes:
        counts: ``[C]`` float64; shares of a soft label count as such.
        prepared: whether ``prepare`` was called.
    """

    counts: Tensor
    prepared: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("prepared", torch.tensor(False))

    def prepare(self, data: TrainingData) -> None:
        """Count the training labels, of which several processes see a share each."""
        self.counts.zero_()
        for batch in data.batches():
            self.counts += self._of(batch.label)
        self.counts.copy_(total_over_processes(self.counts))
        self.prepared.fill_(True)

    def commit(self, label: Tensor, step: Step) -> None:
        """Count the labels of an update, of all processes, where nothing was counted before.

        Args:
            label: ``[B]`` classes or ``[B, C]`` soft labels, of this process.
        """
        self.counts += torch.where(self.prepared, 0.0, self._of(gather(label, step.batch_size)))

    def at_least_one(self) -> Tensor:
        """``[C]`` counts, in which a class without a sample has one, so that logarithm and inverse are finite."""
        return self.counts.clamp(min=1.0)

    def _of(self, label: Tensor) -> Tensor:
        shares_BC = one_hot(label, len(self.counts)) if label.ndim == 1 else label
        return shares_BC.sum(0, dtype=torch.float64).to(self.counts.device)
