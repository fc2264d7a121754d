"""Re-ranking by k-reciprocal neighbours: two items are close where their sets of mutual neighbours overlap.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding" (2017), arXiv
1701.08398. With d the squared Euclidean distance over the largest one of the row, N(p, k) the k + 1 nearest of all
items (p itself comes first) and R(p, k) = {g in N(p, k): p in N(g, k)}:

    R*(p) = R(p, k1) and every R(g, k1 / 2), g in R(p, k1), of which at least 2 / 3 lies in R(p, k1)
    V_p[g] = exp(-d(p, g)) on R*(p), normalized to sum 1; then the mean of V over the k2 nearest of p
    d_J(p, g) = 1 - sum min(V_p, V_g) / sum max(V_p, V_g)
    d*(p, g) = (1 - weight) d_J(p, g) + weight d(p, g)

All queries and gallery items are nodes of the graph. Every query is ranked against its whole row of the gallery.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_modules.retrieval.scores import CHUNK, Array, Scores
from lightning_modules.retrieval.search import search, whole_rows

LIMIT = 50_000  # items whose pairs are all looked at in minutes


def check_reranking(*, k1: float = 20, k2: float = 6, weight: float = 0.3) -> None:
    """Refuse sizes of neighbourhoods and weights that mean nothing."""
    whole = isinstance(k1, int) and isinstance(k2, int)
    if not whole or k1 < 2 or not 1 <= k2 <= k1 or not 0 <= weight <= 1:
        raise ValueError(
            f"rerank: k1={k1}, k2={k2}, weight={weight}; needed are whole numbers k1 >= 2, 1 <= k2 <= k1 and "
            "0 <= weight <= 1"
        )


class KReciprocalScores(Scores):
    """Minus d* of queries with the gallery, one query at a time.

    Args:
        scores: the ordinary scores.
        nodes: rows of all queries and of the gallery, ascending.
        k1: size of the neighbourhoods.
        k2: neighbours over which an encoding is averaged.
        weight: share of the plain distance.

    Raises:
        ValueError: too many items, or a value out of range.
    """

    whole_rows: ClassVar[bool] = True

    def __init__(self, scores: Scores, nodes: Array, *, k1: int = 20, k2: int = 6, weight: float = 0.3) -> None:
        check_reranking(k1=k1, k2=k2, weight=weight)
        if len(nodes) > LIMIT:
            raise ValueError(
                f"k-reciprocal re-ranking looks at every pair of {len(nodes)} items; it takes at most {LIMIT}: leave "
                "it out (rerank=null) or evaluate a part of the gallery"
            )
        super().__init__(scores.embeddings, scores.queries, scores.gallery, scores.metric, scores.groups, scores.own_Q)
        self.tie, self.weight = 2.0**-40, weight
        self.graph = Scores(scores.embeddings, nodes, nodes, scores.metric)
        self.node_Q, self.node_G = np.searchsorted(nodes, scores.queries), np.searchsorted(nodes, scores.gallery)
        near_NK = self._neighbours(min(k1, len(nodes) - 1))
        self.largest_N = self._largest()
        self._encode(near_NK, k1, k2)
        self.kept: tuple[Array, Array] | None = None

    def _neighbours(self, count: int) -> Array:
        """``[N, count + 1]`` nearest nodes, each node first in its own row."""
        total = len(self.graph.queries)
        near_NK = np.tile(np.arange(total)[:, None], (1, count + 1))
        for ranking in search(self.graph, count) if count else ():
            near_NK[ranking.queries, 1:] = ranking.columns
        return near_NK

    def _distances(self, score: Array) -> Array:
        return 2 - 2 * score if self.metric == "cosine" else -2 * score

    def _largest(self) -> Array:
        """``[N]`` largest squared distance of each node to another."""
        largest_N = np.empty(len(self.graph.queries))
        for rows, row_BN in whole_rows(self.graph, np.arange(len(largest_N))):
            lowest = row_BN.masked_fill(row_BN == -torch.inf, torch.inf).amin(1)
            largest_N[rows] = self._distances(lowest.cpu().numpy())
        return np.where(np.isfinite(largest_N) & (largest_N > 0), largest_N, 1.0)

    def _encode(self, near_NK: Array, k1: int, k2: int) -> None:
        """The encodings V by row and, turned around, by column: the rows that hold each node, with their weights."""
        wide, narrow = _reciprocal(near_NK, k1), _reciprocal(near_NK, round(k1 / 2))
        sets = [_extended(own, narrow) for own in wide]
        row = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
        column = np.concatenate(sets)
        value = np.ones(len(row))
        other = row != column
        value[other] = np.exp(
            -self._distances(self.graph.pairs(row[other], column[other])) / self.largest_N[row[other]]
        )
        value /= np.bincount(row, value)[row]
        first = np.searchsorted(row, np.arange(len(sets) + 1))
        mixed = [self._mean(members[:k2], first, column, value) for members in near_NK]
        self.rows_of = mixed
        node = np.concatenate([columns for columns, _ in mixed])
        holder = np.repeat(np.arange(len(mixed)), [len(columns) for columns, _ in mixed])
        weight = np.concatenate([values for _, values in mixed])
        order = np.argsort(node, kind="stable")
        self.holder, self.held = holder[order], weight[order]
        self.first = np.searchsorted(node[order], np.arange(len(mixed) + 1))

    @staticmethod
    def _mean(members: Array, first: Array, column: Array, value: Array) -> tuple[Array, Array]:
        """Nodes and weights of the mean encoding of some rows."""
        places = np.concatenate([np.arange(first[m], first[m + 1]) for m in members])
        nodes, inverse = np.unique(column[places], return_inverse=True)
        return nodes, np.bincount(inverse, value[places]) / len(members)

    def _row(self, query: int) -> Array:
        """``[G]`` minus d* of one query, before anything is hidden."""
        node = self.node_Q[query]
        nodes, weights = self.rows_of[node]
        spans = [np.arange(self.first[n], self.first[n + 1]) for n in nodes]
        place, own = np.concatenate(spans), np.repeat(weights, [len(span) for span in spans])
        shared = np.bincount(self.holder[place], np.minimum(own, self.held[place]), len(self.rows_of))[self.node_G]
        total = len(self.gallery)
        distance = self._distances(super().pairs(np.full(total, query), np.arange(total))) / self.largest_N[node]
        return -((1 - self.weight) * (1 - shared / (2 - shared)) + self.weight * distance)

    def _rows(self, queries: Array) -> Array:
        if self.kept is None or not np.array_equal(self.kept[0], queries):
            self.kept = queries, np.stack([self._row(query) for query in queries])
        return self.kept[1]

    def tile(self, asked: Any, queries: Array, columns: slice) -> Tensor:
        tile = torch.from_numpy(self._rows(queries)[:, columns].copy()).to(self.device)
        self._hide(tile, queries, columns)
        return tile

    def pairs(self, queries: Array, columns: Array) -> Array:
        asked, place = np.unique(queries, return_inverse=True)
        result = np.zeros(len(queries))
        for part in np.array_split(np.arange(len(asked)), -(-len(asked) * len(self.gallery) // CHUNK)):
            here = np.flatnonzero((place >= part[0]) & (place <= part[-1]))
            result[here] = self._rows(asked[part])[place[here] - part[0], columns[here]]
        return result

    def published(self, scores: Array) -> Array:
        """Minus d*, float32."""
        return scores.astype(np.float32)


def _reciprocal(near_NK: Array, k: int) -> list[Array]:
    """R(p, k) of every node."""
    near = near_NK[:, : k + 1]
    mutual = np.stack([(near[near[:, j]] == np.arange(len(near))[:, None]).any(1) for j in range(near.shape[1])], 1)
    return [row[keep] for row, keep in zip(near, mutual, strict=True)]


def _extended(own: Array, narrow: list[Array]) -> Array:
    """R* of a node from its R(p, k1) and everyone's R(g, k1 / 2)."""
    joined, members = [own], set(own.tolist())
    for g in own:
        other = narrow[g]
        if 3 * sum(node in members for node in other.tolist()) >= 2 * len(other):
            joined.append(other)
    return np.unique(np.concatenate(joined))
