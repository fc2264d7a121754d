"""Ranks of relevant items in the whole gallery, by counting what scores more; no row of scores is kept.

Shape legend: B queries, P relevant items of a query, padded, M gallery columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kernels.retrieval_metrics import RelevantRanks
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.scores import CHUNK, Array, Scores

ROWS = 512
FEW = 12  # relevant items for which passes over a tile are cheaper than to sort it


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
    start = 0
    queries = queries[np.argsort(relevance.total_Q[queries], kind="stable")]  # parts of queries with equally many
    while start < len(queries):
        part = queries[start : start + ROWS]
        part = part[: max(CHUNK // 8 // int(relevance.total_Q[part].max()), 1)]
        if scores.whole_rows:
            part = part[: max(CHUNK // len(scores.gallery), 1)]
        start, part = start + len(part), np.sort(part)
        score_BP, column_BP, run_BP = _relevant(scores, relevance, part)
        hits_BP = np.where(column_BP >= 0, np.bincount(run_BP.ravel())[run_BP], 0)
        if first_only:
            score_BP, column_BP, run_BP, hits_BP = (x[:, :1] for x in (score_BP, column_BP, run_BP, hits_BP))
        if score_BP.shape[1] <= FEW and not scores.whole_rows:
            arrays = _counts_of_few(scores, part, score_BP, column_BP)
        else:
            arrays = _counts(scores, part, score_BP, column_BP, hits_BP, run_BP)
        integers = (torch.from_numpy(array.astype(np.int64)) for array in (*arrays, hits_BP))
        yield part, RelevantRanks(*integers)


def _relevant(scores: Scores, relevance: Relevance, queries: Array) -> tuple[Array, Array, Array]:
    """``[B, P]`` each, in the order (score descending, column ascending): score, column (-1: none), number of the run.

    Runs are numbered over all rows from 1, 0 is padding.
    """
    row, column = relevance.pairs(queries)
    score = scores.pairs(queries[row], column)
    order = np.lexsort((column, -score, row))
    row, column, score = row[order], column[order], score[order]
    new = np.ones(len(row), dtype=bool)
    new[1:] = (row[1:] != row[:-1]) | ~(score[:-1] - score[1:] <= scores.tie)
    run = np.cumsum(new)
    order = np.lexsort((column, run))
    column, score = column[order], score[order]
    size = np.bincount(row, minlength=len(queries))
    place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    shape = len(queries), int(size.max())
    score_BP, column_BP, run_BP = np.full(shape, -np.inf), np.full(shape, -1), np.zeros(shape, dtype=np.int64)
    score_BP[row, place], column_BP[row, place], run_BP[row, place] = score, column, run
    return score_BP, column_BP, run_BP


def _tiles(scores: Scores, queries: Array, dtype: torch.dtype, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Tiles of ``size`` scores of these queries with the whole gallery, and the first column of each."""
    asked, total = scores.rows(scores.queries[queries], dtype), len(scores.gallery)
    most = max(CHUNK // scores.embeddings.shape[1], 1)  # so many rows of the gallery are converted at a time
    side = min(max(size // len(queries), 1), most, total)
    buffer = torch.empty(side * len(queries), dtype=dtype, device=scores.device)
    for left in range(0, total, side):
        yield left, scores.tile(asked, queries, slice(left, min(left + side, total)), buffer)


def _counts_of_few(scores: Scores, queries: Array, score_BP: Array, column_BP: Array) -> tuple[Array, Array, Array]:
    """Rank, items above and size of the run, ``[B, P]`` each.

    Counted in float32, except for items whose float32 score is too close to tell.
    """
    above_BP, tied_BP, before_BP = (np.zeros(score_BP.shape, dtype=np.int64) for _ in range(3))
    real_BP, margin = column_BP >= 0, scores.error + scores.tie
    high_BP = np.nextafter(np.where(real_BP, score_BP + margin, np.inf).astype(np.float32), np.float32(np.inf))
    low_BP = np.nextafter(np.where(real_BP, score_BP - margin, np.inf).astype(np.float32), np.float32(-np.inf))
    high, low = torch.from_numpy(high_BP).to(scores.device), torch.from_numpy(low_BP).to(scores.device)
    for left, tile in _tiles(scores, queries, torch.float32, 2 * CHUNK):
        for p in range(score_BP.shape[1]):
            over = (tile > high[:, p, None]).cpu().numpy()
            above_BP[:, p] += _row_counts(over)
            over ^= (tile >= low[:, p, None]).cpu().numpy()
            flat = np.flatnonzero(over)
            row = flat // over.shape[1]
            column = flat - row * over.shape[1] + left
            ahead = scores.pairs(queries[row], column) - score_BP[row, p]
            tied = np.abs(ahead) <= scores.tie
            above_BP[:, p] += np.bincount(row[ahead > scores.tie], minlength=len(queries))
            tied_BP[:, p] += np.bincount(row[tied], minlength=len(queries))
            before_BP[:, p] += np.bincount(row[tied & (column < column_BP[row, p])], minlength=len(queries))
    return above_BP + before_BP + 1, above_BP, np.where(real_BP, tied_BP, 0)


def _counts(
    scores: Scores, queries: Array, score_BP: Array, column_BP: Array, hits_BP: Array, run_BP: Array
) -> tuple[Array, Array, Array]:
    """Rank, items above and size of the run, ``[B, P]`` each, counted in float64."""
    real_BP = column_BP >= 0
    high_BP = np.where(real_BP, score_BP + scores.tie, np.inf)
    low_BP = np.where(real_BP, score_BP - scores.tie, np.inf)
    above_BP, reached_BP = np.zeros(real_BP.shape, dtype=np.int64), np.zeros(real_BP.shape, dtype=np.int64)
    high, low = torch.from_numpy(high_BP).to(scores.device), torch.from_numpy(low_BP).to(scores.device)
    for _, tile in _tiles(scores, queries, torch.float64, CHUNK):
        if tile.device.type == "cpu":
            tile.numpy().sort(axis=1)  # in place
        else:
            tile = tile.sort(1).values
        above_BP += tile.shape[1] - torch.searchsorted(tile, high, right=True).cpu().numpy()
        reached_BP += tile.shape[1] - torch.searchsorted(tile, low).cpu().numpy()
    size_BP = np.where(real_BP, reached_BP - above_BP, 0)
    rank_BP = above_BP + 1 + np.arange(real_BP.shape[1]) - _first_of_run(run_BP)
    mixed = np.flatnonzero((size_BP > hits_BP).any(1))  # tied with an item of another class
    if len(mixed):
        before = _tied_before(scores, queries[mixed], low_BP[mixed], high_BP[mixed], column_BP[mixed])
        rank_BP[mixed] = above_BP[mixed] + before + 1
    return rank_BP, above_BP, size_BP


def _first_of_run(run_BP: Array) -> Array:
    """``[B, P]`` place of the first item of each run."""
    new_BP = np.ones(run_BP.shape, dtype=bool)
    new_BP[:, 1:] = run_BP[:, 1:] != run_BP[:, :-1]
    return np.maximum.accumulate(np.arange(run_BP.shape[1]) * new_BP, axis=1)


def _row_counts(mask: Array) -> Array:
    return np.array([np.count_nonzero(row) for row in mask])


def _tied_before(scores: Scores, queries: Array, low_BP: Array, high_BP: Array, column_BP: Array) -> Array:
    """``[B, P]`` gallery items with the score of a relevant one and a lower column."""
    before_BP = np.zeros(column_BP.shape, dtype=np.int64)
    low, high = torch.from_numpy(low_BP).to(scores.device), torch.from_numpy(high_BP).to(scores.device)
    column = torch.from_numpy(column_BP).to(scores.device)
    for left, tile in _tiles(scores, queries, torch.float64, CHUNK):
        here = torch.arange(left, left + tile.shape[1], device=scores.device)
        for p in range(column_BP.shape[1]):
            tied = (tile >= low[:, p, None]) & (tile <= high[:, p, None]) & (here < column[:, p, None])
            before_BP[:, p] += tied.sum(1).cpu().numpy()
    return before_BP
