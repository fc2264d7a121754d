"""A random sample of a stream of images, which depends on their indices and nothing else."""

from __future__ import annotations

import heapq
from itertools import count as counted
from typing import Generic, TypeVar

from torch import Tensor

from kernels.counter_rng import bits

Row = TypeVar("Row")


class RandomRows(Generic[Row]):
    """Keeps ``count`` of all rows: those whose random number, a function of (seed, index), is lowest.

    The same rows are kept whatever the order and the size of the batches, and no more than ``count`` are ever held.

    Args:
        count: how many.
        seed: of the choice.
        stream: name of the use.
    """

    def __init__(self, count: int, seed: int, stream: str) -> None:
        self.count, self.seed, self.stream = count, seed, stream
        self._heap: list[tuple[int, int, int, Row]] = []  # the highest number first
        self._number = counted()  # an index may come twice, and rows have no order

    def wanted(self, index: Tensor) -> list[int]:
        """Positions in ``index`` ``[B]`` of rows that may be kept."""
        keys = self._keys(index)
        full = len(self._heap) == self.count
        return [at for at, key in enumerate(keys) if not full or (self.count and -key > self._heap[0][0])]

    def add(self, index: Tensor, rows: list[Row]) -> None:
        """Rows with these indices ``[B]``."""
        for key, own, row in zip(self._keys(index), index.tolist(), rows, strict=True):
            if len(self._heap) < self.count:
                heapq.heappush(self._heap, (-key, own, next(self._number), row))
            elif self.count and -key > self._heap[0][0]:
                heapq.heapreplace(self._heap, (-key, own, next(self._number), row))

    def rows(self) -> list[Row]:
        """What was kept, by index."""
        return [row for *_, row in sorted(self._heap, key=lambda item: item[1:3])]

    def _keys(self, index: Tensor) -> list[int]:
        found: list[int] = bits(self.seed, 0, index.cpu(), 0, [self.stream])[0].tolist()
        return found
