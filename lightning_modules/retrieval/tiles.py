"""The nearest rows by float32 scores: every score is computed, none is kept but the best.

A tile of scores is made by one matrix product and read while it is in the cache: whatever is above the row's threshold
(the score of its last kept neighbour) is taken out, and now and then sorted into the rows' lists. Where queries and
gallery are the same rows, a score serves both of them, so that half of the products are left out.

A kept neighbour is one 64-bit number, the score in the high bits (inverted, so that ascending is best first), the
column in the low ones: one sort orders by score and column at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_modules.retrieval.scores import Array, Scores

SIDE = 2048  # rows and columns of a tile
MANY = 256  # neighbours from which on a selection beats a sorted list
PENDING = 1 << 18  # candidates that wait before they are sorted
STATE_BYTES = 16 << 20  # largest lists of all queries at once
Candidates = Iterator[tuple[Array, Array, Array]]


def nearest(scores: Scores, count: int) -> Candidates:
    """The ``count`` best columns of each query by float32 scores, and none left out that scores more than the last.

    Yields:
        queries ``[B]``, scores ``[B, count]`` descending, columns ``[B, count]``; -inf and -1 behind the last item.
    """
    if scores.device.type != "cpu" or count >= MANY:
        yield from _selected(scores, count)
    elif scores.symmetric and len(scores.queries) * count * 8 <= STATE_BYTES:
        yield from _symmetric(scores, count)
    else:
        yield from _blocks(scores, count)


def _blocks(scores: Scores, count: int) -> Candidates:
    size, columns = min(SIDE, max((1 << 19) // count, 64)), len(scores.gallery)
    side = SIDE * SIDE // size
    buffers = _Buffers(size * min(side, columns))
    for start in range(0, len(scores.queries), size):
        queries = np.arange(start, min(start + size, len(scores.queries)))
        asked, best = scores.rows(scores.queries[queries]), _Best(len(queries), count, columns)
        for left in range(0, columns, side):
            tile = scores.tile(asked, queries, slice(left, left + side), buffers.scores)
            if left == 0:
                best.floor(slice(0, len(queries)), tile)
            row, column, score = buffers.above(tile, best.threshold[:, None])
            best.add(row, column + left, score)
        yield (queries, *best.result(slice(0, len(queries))))


def _symmetric(scores: Scores, count: int) -> Candidates:
    total = len(scores.queries)
    best, buffers = _Best(total, count, total), _Buffers(min(SIDE, total) ** 2)
    spans = [slice(a, min(a + SIDE, total)) for a in range(0, total, SIDE)]
    for span in spans:  # the diagonal first: it gives every row a threshold
        queries = np.arange(span.start, span.stop)
        tile = scores.tile(scores.rows(scores.queries[queries]), queries, span, buffers.scores)
        best.floor(span, tile)
        row, column, score = buffers.above(tile, best.threshold[span, None])
        best.add(row + span.start, column + span.start, score)
    for place, span in enumerate(spans):
        queries = np.arange(span.start, span.stop)
        asked = scores.rows(scores.queries[queries])
        for other in spans[place + 1 :]:
            tile = scores.tile(asked, queries, other, buffers.scores)
            row, column, score = buffers.above(tile, best.threshold[span, None])
            best.add(row + span.start, column + other.start, score)
            row, column, score = buffers.above(tile, best.threshold[None, other])
            best.add(column + other.start, row + span.start, score)
    for span in spans:
        yield (np.arange(span.start, span.stop), *best.result(span))


def _selected(scores: Scores, count: int) -> Candidates:
    """On a GPU, or with long lists: whole rows of scores where they fit, and the library's own selection."""
    side = min(len(scores.gallery), 1 << 17)
    size = max((SIDE * SIDE << 5 * (scores.device.type != "cpu")) // side, 1)
    for start in range(0, len(scores.queries), size):
        queries = np.arange(start, min(start + size, len(scores.queries)))
        asked = scores.rows(scores.queries[queries])
        value: Tensor = asked[0].new_zeros(len(queries), 0)
        column = value.long()
        for left in range(0, len(scores.gallery), side):
            tile = scores.tile(asked, queries, slice(left, left + side))
            found = tile.topk(min(count, tile.shape[1]), 1)
            value, column = torch.cat([value, found.values], 1), torch.cat([column, found.indices + left], 1)
            value, order = value.sort(1, descending=True)
            value, column = value[:, :count], column.gather(1, order[:, :count])
        column = column.masked_fill(value == -torch.inf, -1)
        yield queries, value.cpu().numpy(), column.cpu().numpy()


class _Buffers:
    """Memory of one tile, used again for the next."""

    def __init__(self, size: int) -> None:
        self.scores = torch.empty(size)
        self.mask = torch.empty(size, dtype=torch.bool)

    def above(self, tile: Tensor, threshold: Array) -> tuple[Array, Array, Array]:
        """Row, column and score of the entries above a threshold."""
        mask = torch.gt(tile, torch.from_numpy(threshold), out=self.mask[: tile.numel()].view(tile.shape))
        flat = np.flatnonzero(mask.numpy())
        row = flat // tile.shape[1]
        return row, flat - row * tile.shape[1], tile.numpy().reshape(-1)[flat]


class _Best:
    """The ``count`` best columns of each row so far.

    Attributes:
        threshold: ``[rows]`` float32; a score that is not above it cannot enter the list of its row.
    """

    def __init__(self, rows: int, count: int, columns: int) -> None:
        self.bits = max(columns - 1, 1).bit_length()
        if self.bits > 31:
            raise ValueError(f"a gallery of {columns} items; an exhaustive search takes at most 2^31")
        self.span = min(1 << (32 - self.bits), 1 << 13)  # rows that are sorted together
        self.keys = np.full((rows, count), (1 << (32 + self.bits)) - 1, dtype=np.uint64)
        self.threshold = np.full(rows, -np.inf, dtype=np.float32)
        self.pending: list[tuple[Array, Array]] = []
        self.waiting = 0

    def floor(self, rows: slice, tile: Tensor) -> None:
        """Raise the thresholds of new rows to just below the ``count``-th best of disjoint stretches' maxima."""
        count, columns = self.keys.shape[1], tile.shape[1]
        if columns < 2 * count:
            return
        parts = min(1 << (8 * count - 1).bit_length(), columns // 2)
        width = columns // parts
        maxima = tile[:, : parts * width].unflatten(1, (width, parts)).amax(1)
        kth = maxima.topk(count, 1, sorted=False).values.amin(1).numpy()
        self.threshold[rows] = np.nextafter(kth, np.float32(-np.inf))

    def add(self, rows: Array, columns: Array, scores: Array) -> None:
        """Candidates, at most one of each row and column."""
        if len(rows):
            self.pending.append((rows.astype(np.int32), self._packed(scores, columns)))
            self.waiting += len(rows)
        if self.waiting > PENDING:
            self._merge()

    def _packed(self, scores: Array, columns: Array) -> Array:
        raw = (scores + np.float32(0)).view(np.uint32)  # + 0 makes -0 a plain 0
        negative = raw >> np.uint32(31) != 0
        falling = np.where(negative, raw, ~raw & np.uint32(0x7FFFFFFF))
        return (falling.astype(np.uint64) << np.uint64(self.bits)) | columns.astype(np.uint64)

    def _unpacked(self, keys: Array) -> tuple[Array, Array]:
        falling = (keys >> np.uint64(self.bits)).astype(np.uint32)
        raw = np.where(falling >> np.uint32(31) != 0, falling, ~falling & np.uint32(0x7FFFFFFF))
        return raw.astype(np.uint32).view(np.float32), (keys & np.uint64((1 << self.bits) - 1)).astype(np.int64)

    def _merge(self) -> None:
        rows = np.concatenate([rows for rows, _ in self.pending])
        keys = np.concatenate([keys for _, keys in self.pending])
        self.pending, self.waiting = [], 0
        for start in range(0, len(self.keys), self.span):
            here = np.flatnonzero((rows >= start) & (rows < start + self.span))
            if len(here):
                self._merge_rows(start, rows[here] - start, keys[here])

    def _merge_rows(self, start: int, rows: Array, keys: Array) -> None:
        """Sort candidates into the lists of the rows they belong to."""
        count, shift = self.keys.shape[1], np.uint64(32 + self.bits)
        arrivals = np.bincount(rows)
        touched = np.flatnonzero(arrivals)
        local = np.cumsum(arrivals > 0) - 1
        kept = self.keys[start + touched] | (np.arange(len(touched), dtype=np.uint64) << shift)[:, None]
        every = np.concatenate([kept.ravel(), keys | (local[rows].astype(np.uint64) << shift)])
        every.sort()
        first = np.cumsum(arrivals[touched] + count) - arrivals[touched] - count
        best = every[first[:, None] + np.arange(count)] & np.uint64((1 << int(shift)) - 1)
        self.keys[start + touched] = best
        last = self._unpacked(best[:, -1])[0]
        self.threshold[start + touched] = np.fmax(self.threshold[start + touched], last)  # an empty place is NaN

    def result(self, rows: slice) -> tuple[Array, Array]:
        """Scores and columns, best first."""
        if self.pending:
            self._merge()
        scores, columns = self._unpacked(self.keys[rows])
        empty = ~(scores > -np.inf)
        scores[empty], columns[empty] = -np.inf, -1
        return scores, columns
