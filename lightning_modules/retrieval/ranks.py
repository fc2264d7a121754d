"""Ranks of relevant items in the whole gallery, by counting what scores more; no row of scores is kept.

What lies below the lowest relevant item of its query matters to nobody, and that is nearly all of a tile of float32
scores. The rest finds its place among the query's relevant items by one binary search. What float32 cannot tell from
a relevant item is compared with it in float64. Where that or the rest is too much, and for large classes, whole rows
of float64 scores are sorted.

Shape legend: B queries, P relevant items of a query, padded, G gallery, R relevant items of all queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.retrieval_metrics import RelevantRanks
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.scores import CHUNK, Array, Scores, pieces
from lightning_modules.retrieval.search import BLOCK, runs, whole_rows

TILE = 1 << 19  # scores that are made at a time
CLOSE = 64  # comparisons in float64 to one relevant item, on average, from which on whole rows are faster
MOST = 1 / 4  # of a tile may reach relevant items: beyond it, whole rows are faster
FEW = 16  # relevant items of a query, on average, up to which counting beats whole rows
DOUBT = 8.0  # times what counts as equal, or a part of it: rounding errors are smaller, true differences larger
APART = 8.0  # between the scores of one query and the next in one ascending list; scores lie between -2 and 1


@dataclass(frozen=True, slots=True)
class Items:
    """Relevant items of some queries, by falling score, equal ones by column; each query has at least one empty place.

    Attributes:
        queries: ``[B]`` positions among the queries.
        score: ``[B, P]`` float64; -inf in empty places.
        column: ``[B, P]`` positions in the gallery; -1 in empty places.
        hits: ``[B, P]`` relevant items with the same score; 0 in empty places.
    """

    queries: Array
    score: Array
    column: Array
    hits: Array

    @classmethod
    def of(cls, scores: Scores, queries: Array, row_R: Array, column_R: Array, score_R: Array) -> Items:
        """From the place among ``queries``, the column and the score of each item."""
        order = np.lexsort((-score_R, row_R))
        row, column, score = row_R[order], column_R[order], score_R[order]
        new = np.ones(len(row), dtype=bool)
        new[1:] = (row[1:] != row[:-1]) | ~(score[:-1] - score[1:] <= scores.slack(score[:-1]))
        run = np.cumsum(new) - 1
        order = np.lexsort((column, run))
        place = np.arange(len(row)) - np.searchsorted(row, row)
        shape = len(queries), int(place.max()) + 2
        score_BP, column_BP, hits_BP = np.full(shape, -np.inf), np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        score_BP[row, place], column_BP[row, place] = score[order], column[order]
        hits_BP[row, place] = np.bincount(run)[run]
        return cls(queries, score_BP, column_BP, hits_BP)

    def best(self) -> Items:
        """The first item of each query and no other; its ``hits`` still count the others."""
        shown = np.array([True, False])
        score = np.where(shown, self.score[:, :2], -np.inf)
        return Items(self.queries, score, np.where(shown, self.column[:, :2], -1), np.where(shown, self.hits[:, :2], 0))

    def ranks(self, above: Array, tied: Array, before: Array) -> RelevantRanks:
        """From what scores more, what scores the same, and what of this has a lower column; ``[B, P]`` each."""
        fields = (above + before + 1, above, np.where(self.hits > 0, tied, 0), self.hits)
        return RelevantRanks(*(torch.from_numpy(field[:, :-1].copy()) for field in fields))


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
    for part in _parts(relevance, queries, width):
        few = first_only or relevance.total_Q[part].mean() <= FEW
        counted = _counted(scores, relevance, part, first_only) if few and not scores.whole_rows else None
        if counted is not None:
            yield part, counted
            continue
        for rows, row_BG in whole_rows(scores, part):
            yield rows, sorted_ranks(scores, relevance, rows, row_BG.cpu().numpy(), first_only)


def _parts(relevance: Relevance, queries: Array, width: int) -> Iterator[Array]:
    """Some queries with about equally many relevant items, ascending."""
    queries, start = queries[np.argsort(relevance.total_Q[queries], kind="stable")], 0
    while start < len(queries):
        part = queries[start : start + BLOCK]
        part = part[: max(CHUNK // max(int(relevance.total_Q[part].max()), width), 1)]
        start += len(part)
        yield np.sort(part)


def _counted(scores: Scores, relevance: Relevance, queries: Array, first_only: bool) -> RelevantRanks | None:
    """Counted in float32; None where that tells too little, or costs too much."""
    row, column = relevance.pairs(queries)
    items = Items.of(scores, queries, row, column, scores.pairs(queries[row], column))
    items = items.best() if first_only else items
    count = _Counts(scores, items)
    asked, side = scores.asked(queries), min(TILE // len(queries), CHUNK * 8 // scores.embeddings.shape[1])
    for columns in pieces(len(scores.gallery), side):
        if not count.see(scores.tile(asked, queries, columns), columns.start):
            return None
    return items.ranks(*count.result())


class _Counts:
    """Gallery items that score more than each relevant one, or the same.

    Attributes:
        key: ``[B P]`` the items' scores, with their sign changed and those of each query apart: an ascending list.
    """

    def __init__(self, scores: Scores, items: Items) -> None:
        self.scores, self.items, self.shape = scores, items, items.score.shape
        self.margin = scores.error + scores.tie + 2.0**-40
        lowest = np.where(items.hits > 0, items.score, np.inf).min(1) - self.margin
        lowest = np.nextafter(lowest.astype(np.float32), np.float32(-np.inf))
        score = np.where(items.hits > 0, items.score, -APART / 2)  # empty places lie behind all
        key = (np.arange(len(score))[:, None] * APART - score).ravel()
        self.lowest, self.key = (torch.from_numpy(array).to(scores.device) for array in (lowest[:, None], key))
        self.over, self.tied, self.before = (np.zeros(key.shape, dtype=np.int64) for _ in range(3))
        self.left = CLOSE * len(key) + CHUNK // 8

    def see(self, tile: Tensor, start: int) -> bool:
        """Count the scores of a tile whose first column is ``start``; False where too many matter or are unclear."""
        row, column = (tile >= self.lowest).nonzero(as_tuple=True)
        if len(row) > MOST * tile.numel():
            return False
        key = row * APART - tile[row, column].double()
        above = torch.searchsorted(self.key, key + self.margin, right=True)  # all items from here on score less
        self.over += above.bincount(minlength=len(self.key)).cpu().numpy()
        unclear = (self.key[(above - 1).clamp(min=0)] >= key - self.margin).nonzero()[:, 0]
        key, column, above = key[unclear], column[unclear] + start, above[unclear]
        sizes = above - torch.searchsorted(self.key, key - self.margin)
        self.left -= int(sizes.sum())
        if self.left < 0:
            return False
        size, answer, end = (tensor.cpu().numpy() for tensor in (sizes, column, above))
        return self._compare(np.repeat(answer, size), np.repeat(end - np.cumsum(size), size) + np.arange(size.sum()))

    def _compare(self, column: Array, slot: Array) -> bool:
        """Compare gallery items with relevant ones in float64; False where some are neither surely equal nor surely
        apart, because what lies between them, and makes a run of them, is not seen here."""
        own_column, score = self.items.column.ravel()[slot], self.items.score.ravel()[slot]
        own = column == own_column
        np.add.at(self.tied, slot[own], 1)
        column, slot, own_column, score = column[~own], slot[~own], own_column[~own], score[~own]
        ahead = self.scores.pairs(self.items.queries[slot // self.shape[1]], column) - score
        slack = self.scores.slack(score)
        tied = np.abs(ahead) <= slack
        if np.any((np.abs(ahead) > slack / DOUBT) & (np.abs(ahead) <= slack * DOUBT)):
            return False
        np.add.at(self.tied, slot[tied], 1)
        np.add.at(self.before, slot[tied & (column < own_column)], 1)
        # Counted at the item and taken away at the next: ``over`` counts for all that follow.
        clear = slot[ahead > slack]
        np.add.at(self.over, clear, 1)
        np.subtract.at(self.over, clear + 1, 1)
        return True

    def result(self) -> tuple[Array, Array, Array]:
        """Items above, tied, and tied before, ``[B, P]``."""
        above, tied, before = (counts.reshape(self.shape) for counts in (self.over, self.tied, self.before))
        return above.cumsum(1), tied, before


def sorted_ranks(
    scores: Scores, relevance: Relevance, queries: Array, row_BG: Array, first_only: bool = False
) -> RelevantRanks:
    """Ranks from whole rows of float64 scores."""
    row, column = relevance.pairs(queries)
    items = Items.of(scores, queries, row, column, row_BG[row, column])
    items = items.best() if first_only else items
    above, tied, before = (np.zeros(items.score.shape, dtype=np.int64) for _ in range(3))
    for i, score_G in enumerate(row_BG):
        real = np.flatnonzero(items.hits[i])
        falling = -np.sort(-score_G)
        starts = np.flatnonzero(np.diff(runs(scores, falling[None])[0], prepend=-1))  # of each run of equal scores
        run = np.searchsorted(-falling[starts], -items.score[i, real], "right") - 1
        ends = np.append(starts[1:], len(falling))
        above[i, real], tied[i, real] = starts[run], ends[run] - starts[run]
        for one in np.unique(run[tied[i, real] > 1]):
            here = real[run == one]
            same = np.flatnonzero((score_G <= falling[starts[one]]) & (score_G >= falling[ends[one] - 1]))
            before[i, here] = np.searchsorted(same, items.column[i, here])
    return items.ranks(above, tied, before)
