"""Ranks of relevant items in the whole gallery, by counting what scores more; no row of scores is kept.

Shape legend: B queries, P relevant items of a query, padded, M gallery columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kernels.retrieval_metrics import RelevantRanks
from lightning_modules.retrieval.above import MOST, Above, Items, TooClose
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.scores import CHUNK, Array, Scores
from lightning_modules.retrieval.tiles import SIDE, triangle
from lightning_modules.retrieval.whole_rows import from_whole_rows

ROWS = 512  # queries that are counted at a time
TOLD = 4096  # queries whose counts are told at a time
SOME = 8192  # queries whose relevant items are put in order at a time
SLOTS = 1 << 19  # relevant items and queries whose counts are kept at once
FEW = 24  # relevant items of a query, on average, for which counting beats sorting: for first items and on a GPU
PROBED = 32  # pairs of a query and a relevant item that are looked at first
WORTH = 0.65  # share of the gallery that a query's relevant items may climb past: beyond it, sorting rows is faster


def ranks(
    scores: Scores, relevance: Relevance, queries: Array, *, first_only: bool = False, width: int = 1
) -> Iterator[tuple[Array, RelevantRanks]]:
    """Ranks of the relevant items of each query, by true scores as in ``search``; some queries at a time.

    Args:
        scores: of queries with the gallery.
        relevance: the relevant items.
        queries: which queries; each has at least one relevant item.
        first_only: the first relevant item of each query and no other; ``hits`` counts all that are tied with it.
        width: numbers that will be kept of a query, where they are more than its relevant items.
    """
    few = bool(len(queries)) and not scores.whole_rows and _few(scores, relevance, queries, first_only)
    slots = len(scores.queries) + int(relevance.total_Q.sum())
    if few and scores.symmetric and not first_only and slots <= SLOTS and scores.device.type == "cpu":
        try:
            yield from _by_triangle(scores, relevance, queries, width)
            return
        except TooClose:
            pass
    left = [] if few else [queries]
    for part in _parts(relevance, queries, ROWS, width) if few else ():
        try:
            items = Items.of(scores, relevance, part)
            items = items.best() if first_only else items
            count = _counted(scores, items) if scores.device.type == "cpu" else _counted_there(scores, items)
        except TooClose:
            left.append(part)
        else:
            yield part, _filled(items, slice(None), count.ranks())
    yield from from_whole_rows(scores, relevance, np.sort(np.concatenate(left)) if left else queries[:0], first_only)


def _few(scores: Scores, relevance: Relevance, queries: Array, first_only: bool) -> bool:
    """Whether little enough stands before the relevant items of these queries, by a sample of their pairs."""
    total = relevance.total_Q[queries]
    if first_only or scores.device.type != "cpu":
        return bool(total.mean() <= FEW)
    end = np.cumsum(total)
    pair = (np.arange(PROBED) + 0.5) / PROBED * end[-1]
    place, first, times = np.unique(np.searchsorted(end, pair, "right"), return_index=True, return_counts=True)
    if total[place].sum() > CHUNK // 4:  # classes of thousands
        return False
    sample = queries[place]
    row, column = relevance.pairs(sample)
    chosen = np.searchsorted(row, np.arange(len(sample))) + (pair[first] - (end - total)[place]).astype(int)
    bound = torch.from_numpy((scores.pairs(sample, column[chosen]) - scores.error).astype(np.float32))[:, None]
    reached = sum((tile >= bound).sum(1).numpy() for _, tile in _tiles(scores, sample, 2 * CHUNK))
    passed = np.minimum(reached / len(scores.gallery), MOST)
    return bool(total.mean() * np.average(passed, weights=times) <= WORTH)


def _parts(relevance: Relevance, queries: Array, rows: int, width: int) -> Iterator[Array]:
    """At most so many queries with about equally many relevant items, ascending."""
    queries, start = queries[np.argsort(relevance.total_Q[queries], kind="stable")], 0
    while start < len(queries):
        part = queries[start : start + rows]
        part = part[: max(CHUNK // max(int(relevance.total_Q[part].max()), width), 1)]
        start += len(part)
        yield np.sort(part)


def _by_triangle(
    scores: Scores, relevance: Relevance, queries: Array, width: int
) -> Iterator[tuple[Array, RelevantRanks]]:
    """Every score serves both of its rows."""
    every = np.arange(len(scores.queries))
    items = Items.joined([Items.of(scores, relevance, part) for part in np.array_split(every, len(every) // SOME + 1)])
    counts = _counted_on_both_sides(scores, items)
    for part in _parts(relevance, queries, TOLD, width):
        yield part, _filled(items, part, counts)


def _counted_on_both_sides(scores: Scores, items: Items) -> tuple[Array, Array, Array]:
    count, total = Above(scores, items), len(scores.queries)
    side = SIDE if total > 6 * SIDE else SIDE // 2  # half of the diagonal's tiles are wasted
    buffer = torch.empty(min(side, total) ** 2, dtype=torch.float32)
    for rows, columns, tile in triangle(scores, buffer):
        count.see(tile, rows, columns.start, 0)
        if rows != columns:
            count.see(tile, columns, rows.start, 1)
    count.finish()
    return count.ranks()


def _filled(items: Items, rows: slice | Array, counts: tuple[Array, Array, Array]) -> RelevantRanks:
    """From ``Above.ranks``."""
    columns = (items.padded(values, rows).astype(np.int64) for values in (*counts, items.hits))
    return RelevantRanks(*(torch.from_numpy(column) for column in columns))


def _tiles(scores: Scores, queries: Array, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Tiles of float32 scores of these queries with the whole gallery, and the first column of each.

    Neither a tile nor the gallery rows that it is made of hold more than ``size`` numbers.
    """
    asked, total = scores.rows(scores.queries[queries]), len(scores.gallery)
    side = min(max(size // max(len(queries), scores.embeddings.shape[1]), 1), total)
    buffer = torch.empty(side * len(queries), dtype=torch.float32, device=scores.device)
    for left in range(0, total, side):
        yield left, scores.tile(asked, queries, slice(left, min(left + side, total)), buffer)


def _counted(scores: Scores, items: Items) -> Above:
    """Counted in float32 where that can tell."""
    count, every = Above(scores, items), slice(0, len(items.queries))
    for left, tile in _tiles(scores, items.queries, 2 * CHUNK):
        count.see(tile, every, left, 0)
    count.finish()
    return count


def _counted_there(scores: Scores, items: Items) -> Above:
    """The same where the scores are: on a GPU."""
    count = Above(scores, items)
    score_BP = torch.from_numpy(items.padded(count.score, slice(None), np.inf)).to(scores.device)
    margin, above_BP = float(count.margin), torch.zeros_like(score_BP, dtype=torch.int64)
    for left, tile in _tiles(scores, items.queries, 64 * CHUNK):
        for p in range(score_BP.shape[1]):
            over = tile > score_BP[:, p, None] + margin
            above_BP[:, p] += over.sum(1)
            row, column = (over ^ (tile >= score_BP[:, p, None] - margin)).nonzero().cpu().numpy().T
            count.later(column + left, items.first[row] + 1 + p)
    place = torch.arange(score_BP.shape[1]) < torch.from_numpy(np.diff(items.first))[:, None] - 1
    count.finish()
    count.above[items.score < np.inf] += above_BP.cpu()[place].numpy()
    return count
