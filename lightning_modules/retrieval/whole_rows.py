"""Ranks of relevant items from whole rows of float64 scores: for large classes, and where float32 tells too little.

Shape legend: B queries, G gallery, P relevant items of a query, padded.
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
from lightning_modules.retrieval.search import first_of_run, runs, sort_runs, whole_rows


def from_whole_rows(
    scores: Scores, relevance: Relevance, queries: Array, first_only: bool
) -> Iterator[tuple[Array, RelevantRanks]]:
    """Ranks of the relevant items of each query, ascending queries; ``first_only`` as in ``ranks``."""
    for rows, row_BG in whole_rows(scores, queries):
        step = max(min(CHUNK // int(relevance.total_Q[rows].max()), 4 * CHUNK // row_BG.shape[1]), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield part, _ranks(scores, relevance, part, row_BG[start : start + step], first_only)


def _ranks(scores: Scores, relevance: Relevance, queries: Array, row_BG: Tensor, first_only: bool) -> RelevantRanks:
    score_BP, column_BP = _relevant(scores, relevance, queries, row_BG)
    first_BP = first_of_run(runs(score_BP, scores.tie))
    hits_BP = _same(first_BP)
    if first_only:
        score_BP, column_BP, first_BP, hits_BP = (x[:, :1] for x in (score_BP, column_BP, first_BP, hits_BP))
    before_BP = np.arange(score_BP.shape[1]) - first_BP
    sorted_BG = _sorted(row_BG)
    high, low = (torch.from_numpy(score_BP + side).to(row_BG.device) for side in (scores.tie, -scores.tie))
    above_BP = row_BG.shape[1] - torch.searchsorted(sorted_BG, high, right=True).cpu().numpy()
    size_BP = row_BG.shape[1] - torch.searchsorted(sorted_BG, low).cpu().numpy() - above_BP
    real_BP = column_BP >= 0
    mixed = np.flatnonzero(((size_BP > hits_BP) & real_BP).any(1))  # tied with an item of another class
    if len(mixed):
        place_MG = _places(row_BG[torch.from_numpy(mixed).to(row_BG.device)].cpu().numpy(), scores.tie)
        before_BP[mixed] = np.take_along_axis(place_MG, column_BP[mixed], 1) - above_BP[mixed]
    arrays = above_BP + before_BP + 1, above_BP, size_BP * real_BP, hits_BP * real_BP
    return RelevantRanks(*(torch.from_numpy(x.astype(np.int64)) for x in arrays))


def _relevant(scores: Scores, relevance: Relevance, queries: Array, row_BG: Tensor) -> tuple[Array, Array]:
    """``[B, P]`` scores and columns of relevant items, by falling score, equal ones by column; -inf and -1 behind."""
    row, column = relevance.pairs(queries)
    size = relevance.total_Q[queries]
    place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    score_BP, column_BP = np.full((len(queries), size.max()), -np.inf), np.full((len(queries), size.max()), -1)
    found = row_BG[torch.from_numpy(row).to(row_BG.device), torch.from_numpy(column).to(row_BG.device)]
    score_BP[row, place], column_BP[row, place] = found.cpu().numpy(), column
    order = np.argsort(-score_BP, axis=1)
    score_BP, column_BP = np.take_along_axis(score_BP, order, 1), np.take_along_axis(column_BP, order, 1)
    sort_runs(column_BP, runs(score_BP, scores.tie))
    return score_BP, column_BP


def _places(row_BG: Array, tie: float) -> Array:
    """``[B, G]`` place of each column in the order (score descending, column ascending), from 0."""
    order_BG = np.argsort(-row_BG, axis=1)
    run_BG = runs(np.take_along_axis(row_BG, order_BG, 1), tie)
    sort_runs(order_BG, run_BG)
    place_BG = np.empty_like(order_BG)
    np.put_along_axis(place_BG, order_BG, np.arange(row_BG.shape[1])[None], 1)
    return place_BG


def _same(first_BP: Array) -> Array:
    """``[B, P]`` items of the run that begins at a place, for each item of it."""
    width = first_BP.shape[1]
    run_BP = first_BP + width * np.arange(len(first_BP))[:, None]
    return np.bincount(run_BP.ravel(), minlength=run_BP.size)[run_BP]


def _sorted(row_BG: Tensor) -> Tensor:
    """A copy with sorted rows."""
    if row_BG.device.type != "cpu":
        return row_BG.sort(1).values
    result = row_BG.numpy().copy()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy's sort is the faster one, on one thread
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(result, torch.get_num_threads())))
    return torch.from_numpy(result)
