"""Ranks of relevant items from whole rows of float64 scores: for large classes, and where float32 tells too little.

A row is put in order by 16 bits of its scores, a fifth of the work of sorting the scores themselves. Where a relevant
item stands alone in its bucket, this tells its rank; items that share a bucket with one are sorted by their scores.

Shape legend: B queries, G gallery, P relevant items of a query, padded, R relevant items of all queries, M items of
their buckets, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kernels.retrieval_metrics import RelevantRanks
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.scores import CHUNK, Array, Scores
from lightning_modules.retrieval.search import whole_rows

SORTED = 1 << 20  # scores that are put in order at a time
LAST = (1 << 16) - 1  # the bucket of hidden items


def from_whole_rows(
    scores: Scores, relevance: Relevance, queries: Array, first_only: bool
) -> Iterator[tuple[Array, RelevantRanks]]:
    """Ranks of the relevant items of each query, ascending queries; ``first_only`` as in ``ranks``."""
    for rows, row_BG in whole_rows(scores, queries):
        step = max(min(CHUNK // 4 // int(relevance.total_Q[rows].max()), SORTED // row_BG.shape[1]), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            for group, found in _ranks(scores.tie, relevance, part, row_BG[start : start + step], first_only):
                yield part[group], found


def _ranks(
    tie: float, relevance: Relevance, queries: Array, row_BG: Tensor, first_only: bool
) -> Iterator[tuple[slice, RelevantRanks]]:
    """Ranks of some rows after the other: few at a time where many items share buckets with relevant ones."""
    width = row_BG.shape[1]
    order_BG, row_R, start_R, end_R = _around(tie, relevance, queries, row_BG, first_only)
    items_B = np.minimum(np.bincount(row_R, end_R - start_R), width)
    ends = np.flatnonzero(np.diff(np.cumsum(items_B) // (CHUNK // 2), append=np.inf)) + 1
    for a, b in zip([0, *ends[:-1]], ends, strict=True):
        here = slice(*np.searchsorted(row_R, [a, b]))
        stretches = start_R[here] - a * width, end_R[here] - a * width
        group = slice(a, b)
        yield group, _told(tie, relevance, queries[group], row_BG[group], order_BG[group], stretches, first_only)


def _told(
    tie: float,
    relevance: Relevance,
    queries: Array,
    row_BG: Tensor,
    order_BG: Tensor,
    stretches: tuple[Array, Array],
    first_only: bool,
) -> RelevantRanks:
    """Ranks by rows: what is in their stretches is sorted by its scores, equal ones by column."""
    width = row_BG.shape[1]
    position_M, stretch_M = _joined(*stretches)
    row_M = position_M // width
    column_M = _taken(order_BG, position_M)
    score_M = _taken(row_BG, row_M * width + column_M)
    _sort_inside(stretch_M, -score_M, column_M, score_M)
    new_M = np.ones(len(position_M), dtype=bool)
    new_M[1:] = (stretch_M[1:] != stretch_M[:-1]) | (score_M[:-1] - score_M[1:] > tie)
    run_M, first_of_run = np.cumsum(new_M) - 1, np.flatnonzero(new_M)
    _sort_inside(run_M, column_M, column_M)
    found = np.flatnonzero(relevance.hits(queries[row_M], column_M))
    row, run = row_M[found], run_M[found]
    above = position_M[first_of_run[run]] - row * width
    rank = position_M[found] - row * width + 1
    size, hits = np.bincount(run_M)[run], np.bincount(run)[run]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    shape = len(queries), 1 if first_only else int(place.max()) + 1
    keep = place < shape[1]
    fields = torch.zeros(4, *shape, dtype=torch.int64)
    for field, values in zip(fields.numpy(), (rank, above, size, hits), strict=True):
        field[row[keep], place[keep]] = values[keep]
    return RelevantRanks(*fields)


def _around(
    tie: float, relevance: Relevance, queries: Array, row_BG: Tensor, first_only: bool
) -> tuple[Tensor, Array, Array, Array]:
    """The order of the rows by buckets, and the stretches of it that hold all that is tied with a relevant item.

    Returns:
        ``[B, G]`` columns; ``[R]`` row, start and end of the stretches, the latter counted through all rows.
    """
    row_R, column_R = relevance.pairs(queries)
    score_R = _taken(row_BG, row_R * row_BG.shape[1] + column_R)
    first_B = np.searchsorted(row_R, np.arange(len(queries)))
    if first_only:
        score_R = np.maximum.reduceat(score_R, first_B)
        row_R = first_B = np.arange(len(queries))
    place_R = np.arange(len(row_R)) - first_B[row_R]
    score_BP = np.full((len(queries), int(place_R.max()) + 1), np.inf)
    score_BP[row_R, place_R] = score_R
    score = torch.from_numpy(score_BP).to(row_BG.device)
    bucket = _Buckets(row_BG.amax(1, keepdim=True), score.amin(1, keepdim=True), tie)
    bucket_BG = bucket.of_rows(row_BG)
    order_BG = _order(bucket_BG)
    sorted_BG = bucket_BG.gather(1, order_BG)
    start_BP = torch.searchsorted(sorted_BG, bucket.of(score + 2 * tie)).cpu().numpy()
    end_BP = torch.searchsorted(sorted_BG, bucket.of(score - 2 * tie), right=True).cpu().numpy()
    before_R = row_R * row_BG.shape[1]
    return order_BG, row_R, before_R + start_BP[row_R, place_R], before_R + end_BP[row_R, place_R]


class _Buckets:
    """Buckets of 16 bits for the scores of each row, by falling score from -2^15.

    The last one holds hidden items and, like those before it, what scores less than all relevant items.

    Args:
        top_B1: the highest score of each row.
        low_B1: the lowest score that matters.
        tie: scores that differ by no more than two of it lie in neighbouring buckets at most.
    """

    def __init__(self, top_B1: Tensor, low_B1: Tensor, tie: float) -> None:
        self.top, self.factor = top_B1, (LAST - 1) / (top_B1 - low_B1).clamp(min=max(4 * LAST * tie, 1e-300))

    def of(self, score: Tensor, rows: slice = slice(None)) -> Tensor:
        """Buckets of some rows' scores."""
        scaled = (self.top[rows] - score).mul_(self.factor[rows])
        return scaled.clamp_(0, LAST).sub_(1 << 15).to(torch.int16)

    def of_rows(self, row_BG: Tensor) -> Tensor:
        """Buckets of whole rows; some at a time, for temporaries that stay in the cache."""
        bucket_BG = torch.empty(row_BG.shape, dtype=torch.int16, device=row_BG.device)
        step = max(CHUNK // row_BG.shape[1], 1)
        for a in range(0, len(row_BG), step):
            bucket_BG[a : a + step] = self.of(row_BG[a : a + step], slice(a, a + step))
        return bucket_BG


def _order(bucket_BG: Tensor) -> Tensor:
    """``[B, G]`` columns that sort each row."""
    if bucket_BG.device.type != "cpu":
        return bucket_BG.argsort(1)
    order_BG = torch.empty(bucket_BG.shape, dtype=torch.int64)
    out, bucket, threads = order_BG.numpy(), bucket_BG.numpy(), torch.get_num_threads()
    step = max(min(CHUNK // bucket.shape[1], -(-len(bucket) // threads)), 1)

    def sort(a: int) -> None:
        out[a : a + step] = np.argsort(bucket[a : a + step], axis=1, kind="stable")  # numbers of 16 bits are counted

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sort, range(0, len(bucket), step)))
    return order_BG


def _joined(start_R: Array, end_R: Array) -> tuple[Array, Array]:
    """``[M]`` positions in any of the stretches, ascending, and the stretch each is in: those that overlap are one."""
    order = np.argsort(start_R)
    start, end = start_R[order], end_R[order]
    reached = np.concatenate([[0], np.maximum.accumulate(end)[:-1]])
    begin = np.maximum(start, reached)
    size = np.maximum(end - begin, 0)
    position_M = np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(size.sum())
    return position_M, np.repeat(np.cumsum(start >= reached) - 1, size)


def _sort_inside(part_M: Array, key_M: Array, *values: Array) -> None:
    """Sort the items of each part by a key, in place: of the few parts that are not in order."""
    wrong = (key_M[1:] < key_M[:-1]) & (part_M[1:] == part_M[:-1])
    unsorted = np.zeros(part_M[-1] + 1, dtype=bool)
    unsorted[part_M[1:][wrong]] = True
    here = np.flatnonzero(unsorted[part_M])
    order = here[np.lexsort((key_M[here], part_M[here]))]
    for value_M in values:
        value_M[here] = value_M[order]


def _taken(table: Tensor, places: Array) -> Array:
    """Entries at places counted through all rows."""
    return table.view(-1)[torch.from_numpy(places).to(table.device)].cpu().numpy()
