"""The nearest rows by float32 scores: every score is computed, none is kept but the best.

A tile of scores is made by one matrix product and read while it is in the cache: whatever is above the row's threshold
(the score of its last kept neighbour) is taken out, and now and then sorted into the rows' lists. Where queries and
gallery are the same rows, a score serves both of them, so that half of the products are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_modules.retrieval.arrays import places
from lightning_modules.retrieval.best import PENDING, Best
from lightning_modules.retrieval.scores import Array, Scores

SIDE = 2048  # rows and columns of a tile
MANY = 256  # neighbours from which on a selection beats a sorted list
TOLD = 1 << 17  # neighbours that are told at a time
STATE_BYTES = 16 << 20  # largest lists of all queries at once
Candidates = Iterator[tuple[Array, Array, Array]]


def nearest(scores: Scores, count: int) -> Candidates:
    """The ``count`` best columns of each query by float32 scores, and none left out that scores more than the last.

    Yields:
        queries ``[B]``, scores ``[B, count]`` descending, columns ``[B, count]``; -inf and -1 behind the last item.
    """
    if scores.device.type != "cpu" or count >= MANY:
        yield from selected(scores, count, np.arange(len(scores.queries)))
    else:
        yield from listed(scores, count)


def listed(scores: Scores, count: int, dtype: torch.dtype = torch.float32) -> Candidates:
    """The same on a CPU by scores of either precision, float32 or bfloat16."""
    if scores.symmetric and len(scores.queries) * count * 8 <= STATE_BYTES:
        return _symmetric(scores, count, dtype)
    return in_blocks(scores, count, np.arange(len(scores.queries)), dtype)


def in_blocks(scores: Scores, count: int, queries: Array, dtype: torch.dtype = torch.float32) -> Candidates:
    """The same for some queries, ascending."""
    size, columns = min(SIDE, max(TOLD // count, 64)), len(scores.gallery)
    side = min(SIDE * SIDE // size, 2 * SIDE)
    buffers = _Buffers(min(size, len(queries)) * min(side, columns), dtype)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        asked, best = scores.rows(scores.queries[part], dtype), Best(len(part), count)
        for left in range(0, columns, side):
            tile = scores.tile(asked, part, slice(left, left + side), buffers.scores)
            if left == 0:
                best.floor(slice(0, len(part)), tile)
            for row, column, score in buffers.above(tile, best.threshold[:, None]):
                best.add(row, column + left, score)
        yield (part, *best.result(slice(0, len(part))))


def triangle(scores: Scores, buffer: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and scores of tiles that hold every score of symmetric scores once; those of the diagonal first.

    The buffer is memory of a square tile, in the precision of the scores.
    """
    total, side = len(scores.queries), math.isqrt(len(buffer))
    spans = [slice(a, min(a + side, total)) for a in range(0, total, side)]
    pairs = [(span, [span]) for span in spans] + [(span, spans[i + 1 :]) for i, span in enumerate(spans)]
    for span, others in pairs:
        queries = np.arange(span.start, span.stop)
        asked = scores.rows(scores.queries[queries], buffer.dtype)
        for other in others:
            yield span, other, scores.tile(asked, queries, other, buffer)


def _symmetric(scores: Scores, count: int, dtype: torch.dtype) -> Candidates:
    total = len(scores.queries)
    best, buffers = Best(total, count), _Buffers(min(SIDE, total) ** 2, dtype)
    for span, other, tile in triangle(scores, buffers.scores):
        if span == other:  # gives these rows a threshold
            best.floor(span, tile)
        for row, column, score in buffers.above(tile, best.threshold[span, None]):
            best.add(row + span.start, column + other.start, score)
        if span == other:
            continue
        for row, column, score in buffers.above(tile, best.threshold[None, other]):
            best.add(column + other.start, row + span.start, score)
    size = max(min(SIDE, TOLD // count), 1)
    for start in range(0, total, size):
        span = slice(start, min(start + size, total))
        yield (np.arange(span.start, span.stop), *best.result(span))


def selected(scores: Scores, count: int, queries: Array) -> Candidates:
    """As ``nearest`` for some queries, ascending, by the library's own selection.

    Faster on a GPU, for long lists and for few queries.
    """
    on_cpu, width = scores.device.type == "cpu", scores.embeddings.shape[1]
    most, numbers = (1 << 13, 1 << 21) if on_cpu else (1 << 17, 1 << 27)  # rows of a stretch, and numbers in them
    side = min(len(scores.gallery), max(min(most, numbers // width), 4 * count))
    size = max((SIDE * SIDE // 2 if on_cpu else SIDE * SIDE << 5) // side, 1)
    buffer = torch.empty(min(size, len(queries)) * side, dtype=torch.float32, device=scores.device)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        asked = scores.rows(scores.queries[part])
        value: Tensor = asked[0].new_zeros(len(part), 0)
        column = value.long()
        for left in range(0, len(scores.gallery), side):
            tile = scores.tile(asked, part, slice(left, left + side), buffer)
            found = tile.topk(min(count, tile.shape[1]), 1)
            value, column = torch.cat([value, found.values], 1), torch.cat([column, found.indices + left], 1)
            value, order = value.sort(1, descending=True)
            value, column = value[:, :count], column.gather(1, order[:, :count])
        column = column.masked_fill(value == -torch.inf, -1)
        yield part, value.cpu().numpy(), column.cpu().numpy()


class _Buffers:
    """Memory of one tile, used again for the next."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.scores = torch.empty(size, dtype=dtype)
        self.mask = torch.empty(size, dtype=torch.bool)

    def above(self, tile: Tensor, threshold: Array) -> Candidates:
        """Row, column and score of the entries above a float32 threshold, some at a time."""
        mask = self.mask[: tile.numel()].view(tile.shape)
        bits = threshold.view(np.int32)
        if tile.dtype == torch.bfloat16 and bits.min() >= 0:  # floats above zero are in the order of their bits
            np.greater(tile.view(torch.int16).numpy(), (bits >> 16).astype(np.int16), out=mask.numpy())
        else:
            torch.gt(tile, torch.from_numpy(threshold), out=mask)
        every = places(mask.numpy())
        for start in range(0, len(every), PENDING):
            flat = every[start : start + PENDING]
            row = flat // tile.shape[1]
            score = torch.take(tile, torch.from_numpy(flat)).float().numpy()
            yield row, flat - row * tile.shape[1], score
