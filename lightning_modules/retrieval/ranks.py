"""Ranks of relevant items in the whole gallery, by counting what scores more; no row of scores is kept.

Shape legend: B queries, P relevant items of a query, padded, M gallery columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kernels.retrieval_metrics import RelevantRanks
from lightning_modules.retrieval.above import Above, Items, TooClose
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.scores import CHUNK, Array, Scores
from lightning_modules.retrieval.tiles import SIDE, triangle

ROWS = 512
SOME = 8192  # queries whose relevant items are put in order at a time
FEW = 12  # relevant items of a query, on average, for which counting beats sorting
Counts = tuple[Array, Array, Array]  # rank, items above, items with the same score


def ranks(
    scores: Scores, relevance: Relevance, queries: Array, *, first_only: bool = False
) -> Iterator[tuple[Array, RelevantRanks]]:
    """Ranks of the relevant items of each query, by true scores as in ``search``; some queries at a time.

    Args:
        scores: of queries with the gallery.
        relevance: the relevant items.
        queries: which queries; each has at least one relevant item.
        first_only: the first relevant item of each query and no other; ``hits`` counts all that are tied with it.
    """
    few = relevance.total_Q[queries].mean() <= FEW if len(queries) else False
    if few and scores.symmetric and not (first_only or scores.whole_rows) and scores.device.type == "cpu":
        try:
            yield from _by_triangle(scores, relevance, queries)
            return
        except TooClose:
            pass
    for part in _parts(scores, relevance, queries):
        items = Items.of(scores, relevance, part)
        yield part, _ranked(scores, items.best() if first_only else items)


def _parts(scores: Scores, relevance: Relevance, queries: Array) -> Iterator[Array]:
    """Queries with equally many relevant items, ascending."""
    queries, start = queries[np.argsort(relevance.total_Q[queries], kind="stable")], 0
    while start < len(queries):
        part = queries[start : start + ROWS]
        part = part[: max(CHUNK // 8 // int(relevance.total_Q[part].max()), 1)]
        if scores.whole_rows:
            part = part[: max(CHUNK // len(scores.gallery), 1)]
        start += len(part)
        yield np.sort(part)


def _by_triangle(scores: Scores, relevance: Relevance, queries: Array) -> Iterator[tuple[Array, RelevantRanks]]:
    """Every score serves both of its rows."""
    every = np.arange(len(scores.queries))
    items = Items.joined([Items.of(scores, relevance, part) for part in np.array_split(every, len(every) // SOME + 1)])
    count = Above(scores, items)
    for rows, columns, tile in triangle(scores, torch.empty(min(SIDE, len(every)) ** 2)):
        count.see(tile, rows, columns.start, 0)
        if rows != columns:
            count.see(tile, columns, rows.start, 1)
    count.finish()
    for part in _parts(scores, relevance, queries):
        yield part, _filled(items, part, (count.above + count.before + 1, count.above, count.tied))


def _ranked(scores: Scores, items: Items) -> RelevantRanks:
    """Ranks of the relevant items of some queries."""
    if len(items.score) <= (FEW + 1) * len(items.queries) and not scores.whole_rows:
        try:
            count = _counted(scores, items) if scores.device.type == "cpu" else _counted_there(scores, items)
            return _filled(items, slice(None), (count.above + count.before + 1, count.above, count.tied))
        except TooClose:
            pass
    return _sorted(scores, items)


def _filled(items: Items, rows: slice | Array, counts: tuple[Array, Array, Array]) -> RelevantRanks:
    """From rank, items above and items with the same score, of each slot."""
    columns = (items.padded(values, rows).astype(np.int64) for values in (*counts, items.hits))
    return RelevantRanks(*(torch.from_numpy(column) for column in columns))


def _tiles(scores: Scores, queries: Array, dtype: torch.dtype, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Tiles of ``size`` scores of these queries with the whole gallery, and the first column of each."""
    asked, total = scores.rows(scores.queries[queries], dtype), len(scores.gallery)
    most = max(CHUNK // scores.embeddings.shape[1], 1)  # so many rows of the gallery are converted at a time
    side = min(max(size // len(queries), 1), most, total)
    buffer = torch.empty(side * len(queries), dtype=dtype, device=scores.device)
    for left in range(0, total, side):
        yield left, scores.tile(asked, queries, slice(left, min(left + side, total)), buffer)


def _counted(scores: Scores, items: Items) -> Above:
    """Counted in float32 where that can tell."""
    count, every = Above(scores, items), slice(0, len(items.queries))
    for left, tile in _tiles(scores, items.queries, torch.float32, 2 * CHUNK):
        count.see(tile, every, left, 0)
    count.finish()
    return count


def _counted_there(scores: Scores, items: Items) -> Above:
    """The same where the scores are: on a GPU."""
    count, last = Above(scores, items), items.first[1:]
    score_BP = torch.from_numpy(items.padded(count.score, slice(None), np.inf)).to(scores.device)
    margin, above_BP = float(count.margin), torch.zeros_like(score_BP, dtype=torch.int64)
    for left, tile in _tiles(scores, items.queries, torch.float32, 64 * CHUNK):
        for p in range(score_BP.shape[1]):
            over = tile > score_BP[:, p, None] + margin
            above_BP[:, p] += over.sum(1)
            row, column = (over ^ (tile >= score_BP[:, p, None] - margin)).nonzero().cpu().numpy().T
            count.later(column + left, items.first[row] + 1 + p)
    place = torch.arange(score_BP.shape[1]) < torch.from_numpy(np.diff(last, prepend=0))[:, None] - 1
    count.finish()
    count.above[items.score < np.inf] += above_BP.cpu()[place].numpy()
    return count


def _sorted(scores: Scores, items: Items) -> RelevantRanks:
    """From sorted float64 scores."""
    score_BP = items.padded(items.score, slice(None), np.inf)
    high, low = (torch.from_numpy(score_BP + side).to(scores.device) for side in (scores.tie, -scores.tie))
    above_BP, reached_BP = np.zeros(score_BP.shape, dtype=np.int64), np.zeros(score_BP.shape, dtype=np.int64)
    for _, tile in _tiles(scores, items.queries, torch.float64, CHUNK):
        if tile.device.type == "cpu":
            tile.numpy().sort(axis=1)  # in place
        else:
            tile = tile.sort(1).values
        above_BP += tile.shape[1] - torch.searchsorted(tile, high, right=True).cpu().numpy()
        reached_BP += tile.shape[1] - torch.searchsorted(tile, low).cpu().numpy()
    column_BP, hits_BP, before_BP = (
        items.padded(values, slice(None), fill)
        for values, fill in ((items.column, -1), (items.hits, 0), (items.place, 0))
    )
    size_BP = reached_BP - above_BP
    mixed = np.flatnonzero((size_BP > hits_BP).any(1))  # tied with an item of another class
    if len(mixed):
        asked, side = items.queries[mixed], (low[mixed], high[mixed])
        before_BP[mixed] = _tied_before(scores, asked, *side, torch.from_numpy(column_BP[mixed]).to(scores.device))
    integers = above_BP + before_BP + 1, above_BP, size_BP, hits_BP
    return RelevantRanks(*(torch.from_numpy(x.astype(np.int64)) for x in integers))


def _tied_before(scores: Scores, queries: Array, low: torch.Tensor, high: torch.Tensor, column: torch.Tensor) -> Array:
    """``[B, P]`` gallery items with the score of a relevant one and a lower column."""
    before = torch.zeros_like(column)
    for left, tile in _tiles(scores, queries, torch.float64, CHUNK):
        here = torch.arange(left, left + tile.shape[1], device=scores.device)
        for p in range(column.shape[1]):
            tied = (tile >= low[:, p, None]) & (tile <= high[:, p, None]) & (here < column[:, p, None])
            before[:, p] += tied.sum(1)
    return before.cpu().numpy()
