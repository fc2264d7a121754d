"""The exact nearest neighbours of every query: ranked by score, equal scores by gallery position.

Float32 scores find the candidates, or bfloat16 ones where those are faster. A score is trusted as far as its rounding
error allows: neighbours whose scores lie closer together are scored again in float64, and a query whose last neighbour
cannot be told from those left out is asked again, in the end against its whole row of the gallery in float64. So the
ranking is that of the true scores, duplicates and quantized embeddings included, at the price of float32.

Shape legend: B queries, K neighbours, L candidates, G gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lightning_modules.retrieval.coarse import Bounded, coarse
from lightning_modules.retrieval.scores import CHUNK, Array, Scores
from lightning_modules.retrieval.tiles import Candidates, in_blocks, nearest, selected

SMALL = 512  # galleries that are ranked as a whole: faster than to look for candidates
ROWS = 1 << 21  # float64 scores that are made at a time
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


def search(
    scores: Scores, count: int, hits: Hits | None = None, candidates: Candidates | None = None
) -> Iterator[Ranking]:
    """The ``count`` nearest neighbours of each query, some queries at a time, in no particular order of the queries.

    Args:
        scores: of queries with the gallery.
        count: neighbours of a query, at least 1 and at most the size of the gallery.
        hits: tells relevant columns, to count them in runs that reach beyond the last neighbour. The order among
            neighbours closer than float32 can tell, all of them relevant or none, is then left as it is.
        candidates: the ``reach(scores, count)`` best candidates of the queries that are ranked, found in another way
            than by ``nearest``.
    """
    total = len(scores.gallery)
    wanted = reach(scores, count)
    if scores.whole_rows or (candidates is None and (4 * wanted > total or total <= SMALL)):
        yield from dense(scores, np.arange(len(scores.queries)), count, hits)
        return
    found = coarse(scores, count, wanted) if candidates is None else None
    if found is not None:
        again: list[Array] = []
        yield from _decided(scores, found, count, hits, again)
        candidates = in_blocks(scores, wanted, np.concatenate(again))
    single = (
        (*part, part[1][:, -1].astype(np.float64) + scores.error) for part in candidates or nearest(scores, wanted)
    )
    left: list[Array] = []
    yield from _decided(scores, single, count, hits, left)
    yield from dense(scores, np.concatenate(left), count, hits)


def nearest_of(scores: Scores, queries: Array, count: int) -> Iterator[Ranking]:
    """The same for a few queries, ascending."""
    if scores.whole_rows:
        return dense(scores, queries, count, None)
    return search(scores, count, None, selected(scores, reach(scores, count), queries))


def in_order(rankings: Iterable[Ranking], queries: int, count: int) -> tuple[Array, Array]:
    """Columns and scores ``[queries, count]`` of the rankings of all queries."""
    columns, scores = np.full((queries, count), -1), np.full((queries, count), -np.inf)
    for ranking in rankings:
        columns[ranking.queries], scores[ranking.queries] = ranking.columns, ranking.scores
    return columns, scores


def _decided(
    scores: Scores, candidates: Bounded, count: int, hits: Hits | None, left: list[Array]
) -> Iterator[Ranking]:
    """Rankings of the queries whose candidates decide them; the others are left."""
    left.append(np.empty(0, dtype=np.int64))
    for queries, score, column, outside in candidates:
        open_B = _undecided(score, count, scores, outside)
        if open_B.any():
            left.append(queries[open_B])
            queries, score, column = queries[~open_B], score[~open_B], column[~open_B]
        if len(queries):
            yield _certified(scores, queries, score, column, count, hits)


def reach(scores: Scores, count: int) -> int:
    """How many candidates are looked at: some more than asked for, to see that those left out are clearly worse."""
    return min(count + max(4, count // 8), len(scores.gallery))


def _undecided(score_BL: Array, count: int, scores: Scores, outside_B: Array) -> Array:
    """``[B]``: what was left out could belong among the first ``count``, or be tied with them.

    Args:
        score_BL: float32 scores of the candidates, descending.
        count: neighbours that are asked for.
        scores: their bounds.
        outside_B: what was left out scores at most.
    """
    if score_BL.shape[1] == len(scores.gallery):
        return np.zeros(len(score_BL), dtype=bool)
    with np.errstate(invalid="ignore"):  # a short list: -inf - -inf
        return score_BL[:, count - 1].astype(np.float64) - outside_B <= scores.error + scores.tie


def _certified(
    scores: Scores, queries: Array, score_BL: Array, column_BL: Array, count: int, hits: Hits | None
) -> Ranking:
    """Put candidates in their true order: those too close for float32 are scored again."""
    exact_BL = score_BL.astype(np.float64)
    real_BL = column_BL >= 0
    with np.errstate(invalid="ignore"):
        near_BL = exact_BL[:, :-1] - exact_BL[:, 1:] <= 2 * scores.error + scores.tie
    near_BL &= real_BL[:, 1:]
    relevant_BL = None if hits is None else hits(queries[:, None], column_BL)
    row, place = _again(near_BL, relevant_BL).nonzero()
    if len(row):
        exact_BL[row, place] = scores.pairs(queries[row], column_BL[row, place])
    mixed = np.flatnonzero(near_BL.any(1))
    order = np.argsort(-exact_BL[mixed], axis=1, kind="stable")
    exact_BL[mixed] = np.take_along_axis(exact_BL[mixed], order, 1)
    column_BL = column_BL.copy()
    column_BL[mixed] = np.take_along_axis(column_BL[mixed], order, 1)
    run_BL = runs(exact_BL, scores.tie)
    sort_runs(column_BL, run_BL)
    in_last_BL = run_BL == run_BL[:, count - 1, None]
    found = np.zeros(len(queries), dtype=np.int64)
    if hits is not None:
        found = (hits(queries[:, None], column_BL) & in_last_BL).sum(1)
    first_BL = first_of_run(run_BL)
    return Ranking(queries, column_BL[:, :count], exact_BL[:, :count], first_BL[:, :count], in_last_BL.sum(1), found)


def _again(near_BL: Array, relevant_BL: Array | None) -> Array:
    """``[B, L]`` what must be scored again: neighbours that lie close to others, some relevant and some not."""
    pad = np.zeros((len(near_BL), 1), dtype=bool)
    joined_BL = np.concatenate([pad, near_BL], axis=1)
    if relevant_BL is None:
        return joined_BL | np.concatenate([near_BL, pad], axis=1)
    group_BL = np.cumsum(~joined_BL).reshape(joined_BL.shape)
    mixed = np.zeros(int(group_BL[-1, -1]) + 1 if group_BL.size else 1, dtype=bool)
    mixed[group_BL[:, 1:][near_BL & (relevant_BL[:, 1:] != relevant_BL[:, :-1])]] = True
    return mixed[group_BL]


def runs(score_BL: Array, tie: float) -> Array:
    """``[B, L]`` number of the run of equal scores; an empty place is a run of its own."""
    with np.errstate(invalid="ignore"):
        new_BL = ~(score_BL[:, :-1] - score_BL[:, 1:] <= tie)
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


def whole_rows(scores: Scores, queries: Array) -> Iterator[tuple[Array, torch.Tensor]]:
    """Float64 scores of some queries, ascending, with the whole gallery; the next ones overwrite them."""
    total = len(scores.gallery)
    size = min(max(ROWS // total, 1), max(len(queries), 1))
    side = max(CHUNK // scores.embeddings.shape[1], 1)
    # Memory that is made once: pieces of changing size would leave gaps between each other.
    kept, buffer = (torch.empty(size * n, dtype=torch.float64, device=scores.device) for n in (total, min(side, total)))
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        asked = scores.rows(scores.queries[part], torch.float64)
        row_BG = kept[: len(part) * total].view(len(part), total)
        for left in range(0, total, side):
            columns = slice(left, min(left + side, total))
            row_BG[:, columns] = scores.tile(asked, part, columns, buffer)
        yield part, row_BG


def _ranked_rows(scores: Scores, queries: Array, row_BG: torch.Tensor, count: int, hits: Hits | None) -> Ranking:
    """The first ``count`` of whole rows; of those tied with the last, the ones of lowest column."""
    found = row_BG.topk(count, 1)
    value, column = found.values.cpu().numpy(), found.indices.cpu().numpy()
    score_BG = row_BG.cpu().numpy()
    edge = value[:, -1:].copy()
    run = runs(value, scores.tie)
    first = value[np.arange(len(value)), (run == run[:, -1:]).argmax(1)][:, None]  # the highest of the last run
    with np.errstate(invalid="ignore"):
        tied = (score_BG >= edge - scores.tie) & (score_BG <= first) & (edge > -np.inf)
    size = tied.sum(1)
    last_hits = np.zeros(len(queries), dtype=np.int64)
    row, place = tied.nonzero()
    if hits is not None:
        last_hits = np.bincount(row, hits(queries[row], place), len(queries)).astype(np.int64)
    inside = run != run[:, -1:]
    sort_runs(column, run)
    above = inside.sum(1)
    begin = np.cumsum(size) - size
    rank = above[row] + np.arange(len(row)) - begin[row]
    keep = rank < count
    column[row[keep], rank[keep]] = place[keep]
    column[value == -np.inf] = -1
    size = np.where(edge[:, 0] > -np.inf, size, 1)
    starts = first_of_run(run)
    return Ranking(queries, column, value, starts, size, last_hits)
