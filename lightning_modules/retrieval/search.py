"""The exact nearest neighbours of every query: ranked by score, equal scores by gallery position.

FAISS's exhaustive search finds the candidates by float32 scores. A score is trusted as far as its rounding error
allows: neighbours whose scores lie closer together than that are scored again in float64, and a query whose last
neighbour cannot be told from those left out is ranked against its whole row of the gallery in float64. So the ranking
is that of the true scores, duplicates and quantized embeddings included, at the price of float32.

Source: Johnson, Douze, Jegou, "Billion-scale similarity search with GPUs" (2017), arXiv 1702.08734.

Shape legend: B queries, K neighbours, L candidates, G gallery, M gallery columns of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.retrieval.scores import CHUNK, Array, Scores, pieces

BLOCK = 2048  # queries that are searched at a time
PIECE = 1 << 21  # numbers of the gallery rows that are searched at a time
ROWS = 1 << 21  # float64 scores that are made at a time
GROUP = 64  # items of a query's own group that a list makes room for
Hits = Callable[[Array, Array], Array]  # (queries, columns) -> bool: is it relevant


@dataclass(frozen=True, slots=True)
class Ranking:
    """Neighbours of some queries, best first, and which of them are tied.

    Attributes:
        queries: ``[B]`` positions among the queries.
        columns: ``[B, K]`` positions in the gallery, -1 behind the last item.
        scores: ``[B, K]`` float64.
        start: ``[B, K]`` neighbours before the run of equal scores that the position belongs to.
        last_size: ``[B]`` items in the run of the last position, also those beyond it.
        last_hits: ``[B]`` relevant ones among them; counted only where a test for it was given.
    """

    queries: Array
    columns: Array
    scores: Array
    start: Array
    last_size: Array
    last_hits: Array


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nearest gallery items of each query, best first.

    Attributes:
        queries: ``[Q]`` rows that asked.
        ids: ``[Q, K]`` rows of the gallery items, -1 behind the last one.
        scores: ``[Q, K]`` float32 cosines, or minus the squared distances; -inf behind the last one.
    """

    queries: Array
    ids: Array
    scores: Array


def search(
    scores: Scores, count: int, hits: Hits | None = None, queries: Array | None = None, shards: int = 1
) -> Iterator[Ranking]:
    """The ``count`` nearest neighbours of each query, some queries at a time, in no particular order of the queries.

    Args:
        scores: of queries with the gallery.
        count: neighbours of a query, at least 1 and at most the size of the gallery.
        hits: tells relevant columns, to count them in runs that reach beyond the last neighbour.
        queries: positions of the queries that are asked, ascending; all of them without.
        shards: parts of the gallery that are searched one by one, at least.
    """
    queries = np.arange(len(scores.queries)) if queries is None else queries
    wanted = reach(scores, count)
    if scores.whole_rows or 4 * wanted > len(scores.gallery):
        yield from dense(scores, queries, count, hits)
        return
    left = [queries[:0]]
    for part, score, column in candidates(scores, wanted, queries, shards):
        last = score[:, -1:].copy()  # nothing that was left out scores more
        score, column = _without_hidden(scores, part, score, column)
        open_B = ~(score[:, count - 1] - last[:, 0] > 2 * scores.error + scores.tie)
        left.append(part[open_B])
        if not open_B.all():
            yield _certified(scores, part[~open_B], score[~open_B], column[~open_B], count, hits)
    yield from dense(scores, np.concatenate(left), count, hits)


def reach(scores: Scores, count: int) -> int:
    """How many candidates are looked at: some more than asked for, to see that those left out are clearly worse, and
    room for what the query must not see."""
    room = 1
    if scores.groups is not None:
        room = min(int(np.unique(scores.groups[scores.gallery], return_counts=True)[1].max()), GROUP)
    return min(count + room + max(4, count // 8), len(scores.gallery))


def in_order(rankings: Iterable[Ranking], queries: int, count: int) -> tuple[Array, Array]:
    """Columns and scores ``[queries, count]`` of the rankings of all queries."""
    columns, scores = np.full((queries, count), -1), np.full((queries, count), -np.inf)
    for ranking in rankings:
        columns[ranking.queries], scores[ranking.queries] = ranking.columns, ranking.scores
    return columns, scores


def exact(scores: Scores, queries: Array, columns: Array) -> Array:
    """``[B, K]`` float64 scores of the columns of some queries; -inf where a column is -1."""
    result = np.full(columns.shape, -np.inf)
    row, place = (columns >= 0).nonzero()
    result[row, place] = scores.pairs(queries[row], columns[row, place])
    return result


def candidates(scores: Scores, count: int, queries: Array, shards: int = 1) -> Iterator[tuple[Array, Array, Array]]:
    """The best columns of some queries by float32 scores, those that a query must not see among them.

    Yields:
        queries ``[B]``, float64 scores ``[B, count]`` descending, columns ``[B, count]``.
    """
    total, width = len(scores.gallery), scores.embeddings.shape[1]
    stretches = list(pieces(total, min(PIECE // width, 4 * BLOCK, -(-total // shards))))
    for block in pieces(len(queries), min(BLOCK, 8 * CHUNK // (len(stretches) * count))):
        part = queries[block]
        asked = scores.asked(part)
        # Made first: what a piece leaves would stand in the gap where the next one's rows should go.
        value = asked.new_full((len(part), len(stretches) * count), -torch.inf)
        column = torch.zeros_like(value, dtype=torch.int64)
        for number, columns in enumerate(stretches):
            here = slice(number * count, number * count + min(count, columns.stop - columns.start))
            value[:, here], column[:, here] = nearest(asked, scores.answering(columns), here.stop - here.start)
            column[:, here] += columns.start
        best = value.topk(count, 1)
        score = best.values - scores.offset(part)
        yield part, score.double().cpu().numpy(), column.gather(1, best.indices).cpu().numpy()


def nearest(asked_BD: Tensor, rows_MD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest products of each row with others, and which: by FAISS, or by PyTorch without it and for
    rows on a GPU."""
    with suppress(ImportError):
        if not asked_BD.is_cuda:
            import faiss

            found = faiss.knn(asked_BD.numpy(), rows_MD.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    return (asked_BD @ rows_MD.T).topk(count, 1)


def _without_hidden(scores: Scores, queries: Array, score_BL: Array, column_BL: Array) -> tuple[Array, Array]:
    """What a query must not see becomes -inf and -1, at the end."""
    hidden_BL = scores.hidden(queries, column_BL)
    score_BL, column_BL = np.where(hidden_BL, -np.inf, score_BL), np.where(hidden_BL, -1, column_BL)
    return _ordered(score_BL, column_BL)


def _ordered(score_BL: Array, column_BL: Array) -> tuple[Array, Array]:
    order = np.argsort(-score_BL, axis=1, kind="stable")
    return np.take_along_axis(score_BL, order, 1), np.take_along_axis(column_BL, order, 1)


def _certified(
    scores: Scores, queries: Array, score_BL: Array, column_BL: Array, count: int, hits: Hits | None
) -> Ranking:
    """Put candidates in their true order: those too close for float32 are scored again."""
    near_BL = np.zeros((len(queries), score_BL.shape[1] + 1), dtype=bool)
    with np.errstate(invalid="ignore"):  # behind the last item: -inf - -inf
        near_BL[:, 1:-1] = score_BL[:, :-1] - score_BL[:, 1:] <= 2 * scores.error + scores.tie
    row, place = (near_BL[:, 1:] | near_BL[:, :-1]).nonzero()
    score_BL[row, place] = scores.pairs(queries[row], column_BL[row, place])
    score_BL, column_BL = _ordered(score_BL, column_BL)
    run_BL = runs(scores, score_BL)
    sort_runs(column_BL, run_BL)
    in_last_BL = run_BL == run_BL[:, count - 1, None]
    found = np.zeros(len(queries), dtype=np.int64)
    if hits is not None:
        found = (hits(queries[:, None], column_BL) & in_last_BL).sum(1)
    first_BL = first_of_run(run_BL)
    return Ranking(queries, column_BL[:, :count], score_BL[:, :count], first_BL[:, :count], in_last_BL.sum(1), found)


def runs(scores: Scores, score_BL: Array) -> Array:
    """``[B, L]`` number of the run of equal scores, which fall; an empty place is a run of its own."""
    with np.errstate(invalid="ignore"):
        new_BL = ~(score_BL[:, :-1] - score_BL[:, 1:] <= scores.slack(score_BL[:, :-1]))
    return np.concatenate([np.zeros((len(score_BL), 1), dtype=np.int64), new_BL.cumsum(1)], axis=1)


def sort_runs(column_BL: Array, run_BL: Array) -> None:
    """Sort the columns of each run of equal scores, in place."""
    tied = np.flatnonzero(run_BL[:, -1] + 1 < run_BL.shape[1])
    order = np.lexsort((column_BL[tied], run_BL[tied]), axis=1)
    column_BL[tied] = np.take_along_axis(column_BL[tied], order, 1)


def first_of_run(run_BL: Array) -> Array:
    """``[B, L]`` first position of the run that each position belongs to."""
    new_BL = np.ones(run_BL.shape, dtype=bool)
    new_BL[:, 1:] = run_BL[:, 1:] != run_BL[:, :-1]
    return np.maximum.accumulate(np.arange(run_BL.shape[1]) * new_BL, axis=1)


def dense(scores: Scores, queries: Array, count: int, hits: Hits | None) -> Iterator[Ranking]:
    """Queries ranked against their whole rows of float64 scores."""
    for part, row_BG in whole_rows(scores, queries):
        yield _ranked_rows(scores, part, row_BG, count, hits)


def whole_rows(scores: Scores, queries: Array) -> Iterator[tuple[Array, Tensor]]:
    """Float64 scores of some queries, ascending, with the whole gallery; the next ones overwrite them."""
    total = len(scores.gallery)
    size = min(max(ROWS // total, 1), max(len(queries), 1))
    kept = torch.empty(size, total, dtype=torch.float64, device=scores.device)
    for block in pieces(len(queries), size):
        part = queries[block]
        asked, row_BG = scores.asked(part, torch.float64), kept[: len(part)]
        for columns in pieces(total, 4 * CHUNK // scores.embeddings.shape[1]):
            row_BG[:, columns] = scores.tile(asked, part, columns)
        yield part, row_BG


def _ranked_rows(scores: Scores, queries: Array, row_BG: Tensor, count: int, hits: Hits | None) -> Ranking:
    """The first ``count`` of whole rows; of those tied with the last, the ones of lowest column."""
    found = row_BG.topk(count, 1)
    value, column = found.values.cpu().numpy(), found.indices.cpu().numpy()
    score_BG, edge = row_BG.cpu().numpy(), value[:, -1:]
    run = runs(scores, value)
    inside = run != run[:, -1:]
    first = value[np.arange(len(value)), inside.sum(1)][:, None]  # the highest of the last run
    tied = _chained(scores, score_BG, edge) & (score_BG <= first)
    row, place = tied.nonzero()
    size, last_hits = tied.sum(1), np.zeros(len(queries), dtype=np.int64)
    if hits is not None:
        last_hits = np.bincount(row, hits(queries[row], place), len(queries)).astype(np.int64)
    sort_runs(column, run)
    rank = inside.sum(1)[row] + np.arange(len(row)) - (np.cumsum(size) - size)[row]
    keep = rank < count
    column[row[keep], rank[keep]] = place[keep]
    column[value == -np.inf] = -1
    return Ranking(queries, column, value, first_of_run(run), np.maximum(size, 1), last_hits)


def _chained(scores: Scores, score_BG: Array, edge_B1: Array) -> Array:
    """``[B, G]`` what reaches the edge, or the lowest that does, and so on; nothing below an empty place."""
    while True:
        with np.errstate(invalid="ignore"):
            tied = (score_BG >= edge_B1 - scores.slack(edge_B1)) & (edge_B1 > -np.inf)
        lowest_B1 = np.minimum(edge_B1, score_BG.min(1, keepdims=True, initial=np.inf, where=tied))
        if np.array_equal(lowest_B1, edge_B1):
            return tied
        edge_B1 = lowest_B1
