"""How many gallery items score more than each relevant item: counted from tiles of float32 scores, none of them kept.

What lies below the lowest relevant item of its query matters to nobody, and that is nearly all of a tile. The rest
climbs: past one relevant item after the other, until it meets one that scores more. What float32 cannot tell from a
relevant item is compared with it in float64.

Shape legend: B queries, L slots: the relevant items of all queries behind each other, and an empty one before each
query's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.retrieval.arrays import Waiting, by_number, places
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.scores import Array, Scores

PENDING = 1 << 15  # scores that wait to climb on, and comparisons in float64 that wait
CLOSE = 64  # of them to one relevant item, on average, from which on float64 tiles are faster
MOST = 1 / 16  # of a tile may climb: where more reaches the lowest items, those are counted by themselves first
ONE = np.int32(1)  # of the counts' own type: without it, numpy adds ten times more slowly


class TooClose(Exception):
    """Float32 tells too little of these scores."""


@dataclass(frozen=True, slots=True)
class Items:
    """Relevant items of some queries, by falling score, equal ones by column.

    Attributes:
        queries: ``[B]`` positions among the queries.
        first: ``[B + 1]`` the empty slot before each query's items, and the end.
        score: ``[L]`` float64; inf in empty slots.
        column: ``[L]`` positions in the gallery; -1 in empty slots.
        hits: ``[L]`` relevant items with the same score; 0 in empty slots.
    """

    queries: Array
    first: Array
    score: Array
    column: Array
    hits: Array

    @classmethod
    def of(cls, scores: Scores, relevance: Relevance, queries: Array) -> Items:
        """All relevant items of some queries."""
        row, column = relevance.pairs(queries)
        score = scores.pairs(queries[row], column)
        order = np.argsort(-score)
        order = order[by_number(row[order], len(queries))]
        row, column, score = row[order], column[order], score[order]
        new = np.ones(len(row), dtype=bool)
        new[1:] = (row[1:] != row[:-1]) | ~(score[:-1] - score[1:] <= scores.tie)
        run = np.cumsum(new) - 1
        order = np.argsort(run * len(scores.gallery) + column)
        first = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(queries)) + 1)])
        slot, size = np.arange(len(row)) + row + 1, np.bincount(run)
        score_L, column_L = np.full(first[-1], np.inf), np.full(first[-1], -1, dtype=np.int32)
        hits_L = np.zeros(first[-1], dtype=np.int32)
        score_L[slot], column_L[slot], hits_L[slot] = score[order], column[order], size[run]
        return cls(queries, first, score_L, column_L, hits_L)

    @classmethod
    def joined(cls, parts: list[Items]) -> Items:
        """The items of all their queries."""
        fields = (np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__ if name != "first")
        slots = np.concatenate([np.diff(part.first) for part in parts])
        queries, *others = fields
        return cls(queries, np.concatenate([[0], np.cumsum(slots)]), *others)

    def best(self) -> Items:
        """The first item of each query and no other; its ``hits`` still count the others."""
        keep = self.first[:-1, None] + np.arange(2)
        slots = (field[keep].ravel() for field in (self.score, self.column, self.hits))
        return Items(self.queries, 2 * np.arange(len(self.queries) + 1), *slots)

    def padded(self, values: Array, rows: slice | Array, fill: float = 0) -> Array:
        """``[B, P]`` of values by slot: those of some queries, without the empty slots."""
        first, size = self.first[:-1][rows], np.diff(self.first)[rows] - 1
        place = np.arange(max(int(size.max(initial=0)), 1))
        slot = np.minimum(first[:, None] + 1 + place, len(values) - 1)
        return np.where(place < size[:, None], values[slot], fill)


class Above:
    """Counts for items.

    Attributes:
        above: ``[L]`` gallery items that score more.
        tied: ``[L]`` gallery items with the same score, itself included.
        before: ``[L]`` those of them with a lower column.
    """

    def __init__(self, scores: Scores, items: Items) -> None:
        self.scores, self.items = scores, items
        self.above, self.tied, self.before = (np.zeros(len(items.score), dtype=np.int32) for _ in range(3))
        self.margin = np.float32(scores.error + scores.tie + 2.0**-21)  # the last for differences in float32
        self.score = items.score.astype(np.float32)
        self.climbing = Waiting(PENDING, np.float32, np.int64, np.int64)
        self.unclear = Waiting(PENDING, np.int64, np.int64)
        self.left = CLOSE * len(items.score) + PENDING
        self.mask = np.empty(0, dtype=bool)

    def see(self, tile: Tensor, asking: slice, start: int, axis: int) -> None:
        """Count the scores of a tile.

        Args:
            tile: float32 scores.
            asking: the queries of the tile's rows (axis 0) or columns (axis 1).
            start: first of the gallery columns on the other side.
            axis: which side asks.

        Raises:
            TooClose: too many scores that float32 cannot tell from those of relevant items.
        """
        scores = tile.numpy()
        if len(self.mask) < scores.size:
            self.mask = np.empty(scores.size, dtype=bool)
        reached = self.mask[: scores.size].reshape(scores.shape)
        empty, slot = self.items.first[:-1][asking], self.items.first[1:][asking] - 1  # the lowest items
        while True:
            bound = torch.from_numpy(_along(self.score[slot] - self.margin, axis))
            torch.ge(tile, bound, out=torch.from_numpy(reached))  # on all threads
            if np.count_nonzero(reached) <= MOST * scores.size:
                break
            over = scores > _along(self.score[slot] + self.margin, axis)
            self.above[slot] += _counts(over, axis)
            asked, column = _sides(np.flatnonzero(np.not_equal(reached, over, out=over)), scores, axis)
            self.later(column + start, slot[asked])
            slot = np.maximum(slot - 1, empty)
        flat = places(reached)
        asked, column = _sides(flat, scores, axis)
        self.climbing.add(self._climb, *self._step(scores.reshape(-1).take(flat), column + start, slot.take(asked)))

    def _climb(self, score: Array, column: Array, slot: Array) -> None:
        """Count scores at all slots that they reach."""
        while len(score):
            score, column, slot = self._step(score, column, slot)

    def _step(self, score: Array, column: Array, slot: Array) -> tuple[Array, Array, Array]:
        """Count scores at the slots that they reach; what is left reaches the slot before as well."""
        close = np.flatnonzero(score <= self.score.take(slot) + self.margin)
        np.add.at(self.above, slot, ONE)
        np.subtract.at(self.above, slot.take(close), ONE)
        self.later(column.take(close), slot.take(close))
        slot = slot - 1
        keep = np.flatnonzero(score >= self.score.take(slot) - self.margin)
        return score.take(keep), column.take(keep), slot.take(keep)

    def later(self, column: Array, slot: Array) -> None:
        """Columns and slots that are compared in float64.

        Raises:
            TooClose: they are too many.
        """
        self.left -= len(slot)
        if self.left < 0:
            raise TooClose
        self.unclear.add(self._compare, column, slot)

    def finish(self) -> None:
        """Count what waits.

        Raises:
            TooClose: too much of it is unclear.
        """
        self.climbing.finish(self._climb)
        self.unclear.finish(self._compare)

    def ranks(self) -> tuple[Array, Array, Array]:
        """Rank, items above and items with the same score, of each slot."""
        return self.above + self.before + 1, self.above, self.tied

    def _compare(self, column: Array, slot: Array) -> None:
        """Compare gallery items with relevant ones in float64."""
        own = column == self.items.column[slot]
        np.add.at(self.tied, slot[own], ONE)
        column, slot = column[~own], slot[~own]
        query = self.items.queries[np.searchsorted(self.items.first, slot, side="right") - 1]
        ahead = self.scores.pairs(query, column) - self.items.score[slot]
        tied = np.abs(ahead) <= self.scores.tie
        before = tied & (column < self.items.column[slot])
        for counts, here in ((self.above, ahead > self.scores.tie), (self.tied, tied), (self.before, before)):
            np.add.at(counts, slot[here], ONE)


def _along(bound: Array, axis: int) -> Array:
    return bound[:, None] if axis == 0 else bound


def _sides(flat: Array, tile: Array, axis: int) -> tuple[Array, Array]:
    """Who asks, and who answers, at places of a tile."""
    row = flat // tile.shape[1]
    column = flat - row * tile.shape[1]
    return (row, column) if axis == 0 else (column, row)


def _counts(mask: Array, axis: int) -> Array:
    """Entries that are set, of each row (axis 0) or column (axis 1)."""
    if axis == 0:
        return np.array([np.count_nonzero(row) for row in mask])
    parts = (mask[i : i + 255].view(np.uint8).sum(0, dtype=np.uint8) for i in range(0, len(mask), 255))
    return np.sum([part.astype(np.int64) for part in parts], axis=0)
