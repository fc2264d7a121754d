"""Lists of the best columns of many rows, filled with candidates as they come.

A kept neighbour is one 64-bit number, the score in the high bits (inverted, so that ascending is best first), the
column in the low ones: one sort orders by score and column at once.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_modules.retrieval.arrays import by_number
from lightning_modules.retrieval.scores import Array

PENDING = 1 << 15  # candidates that wait before they are sorted
SPAN = 1 << 13  # rows that are sorted together, at most
NUMBERS = 1 << 18  # of lists that are sorted together
STRETCHES = 3  # of the first scores, for each place of a list: their maxima tell a first threshold
EMPTY = np.uint64((1 << 64) - 1)


class Best:
    """The ``count`` best columns of each row so far.

    Attributes:
        threshold: ``[rows]`` float32; a score that is not above it cannot enter the list of its row.
    """

    def __init__(self, rows: int, count: int) -> None:
        self.keys = np.full((rows, count), EMPTY)
        self.threshold = np.full(rows, -np.inf, dtype=np.float32)
        self.pending: list[tuple[Array, Array]] = []
        self.waiting = 0

    def floor(self, rows: slice, tile: Tensor) -> None:
        """Raise the thresholds of new rows to just below the ``count``-th best of disjoint stretches' maxima."""
        count, columns = self.keys.shape[1], tile.shape[1]
        if columns < 2 * count:
            return
        parts = min(1 << (STRETCHES * count - 1).bit_length(), columns // 2)
        width, step = columns // parts, max(NUMBERS // parts, 1)
        for a in range(0, len(tile), step):
            maxima = tile[a : a + step, : parts * width].unflatten(1, (width, parts)).amax(1)
            kth = np.partition(maxima.float().numpy(), parts - count, axis=1)[:, parts - count]
            here = slice(rows.start + a, min(rows.start + a + step, rows.stop))
            self.threshold[here] = np.nextafter(kth, np.float32(-np.inf))

    def add(self, rows: Array, columns: Array, scores: Array) -> None:
        """Candidates, at most one of each row and column."""
        if len(rows):
            self.pending.append((rows.astype(np.int32), _packed(scores, columns)))
            self.waiting += len(rows)
        if self.waiting > PENDING:
            self._merge()

    def _merge(self) -> None:
        """Sort what waits into the lists."""
        rows, keys = (np.concatenate(arrays) for arrays in zip(*self.pending, strict=True))
        self.pending, self.waiting = [], 0
        order = by_number(rows, len(self.keys))
        rows, keys = rows[order], keys[order]
        span = max(min(SPAN, NUMBERS // self.keys.shape[1]), 1)
        bounds = np.searchsorted(rows, np.arange(0, len(self.keys) + span, span))
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            if start < stop:
                self._merge_span(rows[start:stop], keys[start:stop])

    def _merge_span(self, rows: Array, keys: Array) -> None:
        """Sort candidates into the lists of their rows, as many of a row at a time as its list is long."""
        count, base = self.keys.shape[1], int(rows[0])
        arrivals = np.bincount(rows - base)
        place = np.arange(len(rows)) - (np.cumsum(arrivals) - arrivals)[rows - base]
        for first in range(0, int(arrivals.max()), count):
            left = arrivals - first
            touched = np.flatnonzero(left > 0)
            here = (place >= first) & (place < first + count)
            table = np.full((len(touched), count + min(int(left.max()), count)), EMPTY)
            table[:, :count] = self.keys[base + touched]
            line = (np.cumsum(left > 0) - 1)[rows[here] - base]
            table[line, count + place[here] - first] = keys[here]
            table.sort(axis=1)
            self.keys[base + touched] = table[:, :count]
        touched = base + np.flatnonzero(arrivals)
        last = _unpacked(self.keys[touched, -1])[0]
        self.threshold[touched] = np.fmax(self.threshold[touched], last)  # an empty place is NaN

    def result(self, rows: slice) -> tuple[Array, Array]:
        """Scores and columns, best first."""
        if self.pending:
            self._merge()
        scores, columns = _unpacked(self.keys[rows])
        empty = ~(scores > -np.inf)
        scores[empty], columns[empty] = -np.inf, -1
        return scores, columns


def _packed(scores: Array, columns: Array) -> Array:
    raw = (scores + np.float32(0)).view(np.uint32)  # + 0 makes -0 a plain 0
    negative = raw >> np.uint32(31) != 0
    falling = np.where(negative, raw, ~raw & np.uint32(0x7FFFFFFF))
    return (falling.astype(np.uint64) << np.uint64(32)) | columns.astype(np.uint64)


def _unpacked(keys: Array) -> tuple[Array, Array]:
    falling = (keys >> np.uint64(32)).astype(np.uint32)
    raw = np.where(falling >> np.uint32(31) != 0, falling, ~falling & np.uint32(0x7FFFFFFF))
    return raw.astype(np.uint32).view(np.float32), (keys & np.uint64((1 << 32) - 1)).astype(np.int64)
