"""The images of a stream to work on: all as they come, or a random sample of them at the end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.batch import Batch
from lightning_modules.evaluators.random_rows import RandomRows


class BatchSample:
    """For an evaluator that costs much an image: with a limit, what it works on is the same in any order.

    Args:
        limit: how many images, chosen at random; they wait in memory. None for all, as they come.
        seed: of the choice.
        stream: name of the use.

    Attributes:
        seen: images so far.
    """

    def __init__(self, limit: int | None, seed: int, stream: str) -> None:
        self.seen, self.limit = 0, limit
        self._batch_size = 1
        self._waiting: RandomRows[tuple[Tensor, Tensor, int]] = RandomRows(limit or 0, seed, stream)

    def now(self, batch: Batch) -> list[Batch]:
        """The batch, where all images are worked on; else nothing, and some of its images are kept."""
        self.seen, self._batch_size = self.seen + len(batch), max(self._batch_size, len(batch))
        if self.limit is None:
            return [batch]
        at = self._waiting.wanted(batch.index)
        rows = [(batch.image[i].cpu().clone(), batch.label[i].cpu(), int(batch.index[i])) for i in at]
        self._waiting.add(batch.index[at], rows)
        return []

    def rest(self, device: torch.device) -> Iterator[Batch]:
        """What was kept, by index, in batches as large as they came."""
        rows = self._waiting.rows()
        for start in range(0, len(rows), self._batch_size):
            images, labels, index = zip(*rows[start : start + self._batch_size], strict=True)
            yield Batch(torch.stack(images), torch.stack(labels), torch.tensor(index)).to(device)
