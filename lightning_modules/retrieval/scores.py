"""Scores between rows of one embedding matrix, with a bound on the rounding errors of those in float32.

A score is larger for closer rows: the cosine, or minus half the squared distance. FAISS and tiles find it in float32;
``error`` bounds how far such a score is from the true one, so that it is known which comparisons can be trusted. The
others are decided by ``pairs`` or by float64 tiles; scores within ``slack`` of the next make a run of equal ones.

Nothing here is as large as the embeddings: rows are scaled when they are multiplied.

Shape legend: N rows, D dimensions, Q queries, G gallery, B queries of a tile, M gallery columns of a tile, K columns of
a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Metric = Literal["cosine", "l2"]
CHUNK = 1 << 18  # numbers of a temporary


class Scores:
    """Scores of queries with a gallery, both of them rows of one matrix.

    A query never meets itself, nor gallery items of its own group: those scores are -inf.

    Args:
        embeddings: ``[N, D]`` float32 or float64, finite; read, never written.
        queries: ``[Q]`` rows that ask.
        gallery: ``[G]`` rows that answer, ascending.
        metric: cosine or l2.
        groups: ``[N]`` integers; a query ignores the gallery items of its own group where that is not negative.
        own_Q: column of each query in the gallery, or -1, where rows do not tell.

    Attributes:
        whole_rows: a score is not made of two rows alone, so that float32 finds no candidates.
        error: bound on the rounding error of a float32 score.
        tie: float64 scores that differ by no more are equal; a bound on ``slack``.
        own_Q: column of the query itself in the gallery, -1 where it is not there.
    """

    whole_rows: ClassVar[bool] = False

    def __init__(
        self,
        embeddings: Tensor,
        queries: Array,
        gallery: Array,
        metric: Metric = "cosine",
        groups: Array | None = None,
        own_Q: Array | None = None,
    ) -> None:
        self.embeddings, self.queries, self.gallery, self.metric = embeddings, queries, gallery, metric
        if own_Q is None:
            column_N = np.full(len(embeddings), -1)
            column_N[gallery] = np.arange(len(gallery))
            own_Q = column_N[queries]
        self.own_Q, self.groups = own_Q, groups
        self._measure()

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    def _measure(self) -> None:
        """Lengths of the rows, and from them the bounds.

        A float32 product of rows with D terms, added in any order, is off by at most D u |q| |g|, with u = 2^-24; a row
        that was scaled and rounded first adds 2 u, the squared lengths of l2 6 u.
        """
        dimensions = self.embeddings.shape[1]
        self.center = torch.zeros(dimensions, dtype=torch.float64, device=self.device)
        if self.metric == "l2":  # distances do not depend on it, but their rounding errors do
            for part in self.embeddings.split(max(CHUNK // dimensions, 1)):
                self.center += part.sum(0, dtype=torch.float64) / len(self.embeddings)
        length_N = self.center.new_empty(len(self.embeddings))  # made first: what is kept would pin freed temporaries
        for rows in pieces(len(length_N), CHUNK // dimensions):
            length_N[rows] = self._centered(self.embeddings[rows]).norm(dim=1)
        if self.metric == "cosine":
            self.scale_N, self.half_N, products = 1 / length_N, None, 1.0
        else:
            power = 2.0 ** -np.ceil(np.log2(max(float(length_N.max()), 1e-300)))  # a power of two rounds nothing
            self.scale_N, self.half_N = torch.full_like(length_N, power), (length_N * power) ** 2 / 2
            products = 2 * float(length_N.max() * power) ** 2  # bound on |q| |g|, with the squared lengths
        self.error = 1.01 * 2.0**-24 * (dimensions + 16) * products
        self.tie = 2.0**-43 * products

    def slack(self, score: Array) -> Array:
        """By how much a float64 score may fall short of one and be equal to it: for l2 a share of the distance, whose
        error is one too, because rows are subtracted first."""
        return np.abs(score) * 2.0**-43 if self.metric == "l2" else np.full_like(score, self.tie)

    def _centered(self, rows: Tensor) -> Tensor:
        return rows - self.center if self.metric == "l2" else rows.double()  # float64 as well: the center is

    def rows(self, ids: Array, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[B, D]`` rows of the matrix, of length 1 under cosine, else centred and at most 1 long."""
        where = torch.as_tensor(ids, device=self.device)
        rows, scale = self.embeddings[where], self.scale_N[where, None]
        if self.metric == "l2":
            return self._centered(rows).mul_(scale).to(dtype)
        wide = torch.promote_types(rows.dtype, dtype)
        return rows.to(wide).mul_(scale.to(wide)).to(dtype)

    def asked(self, queries: Array, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[B, E]`` rows whose product with those of ``answering`` is the score, but for ``offset``."""
        rows = self.rows(self.queries[queries], dtype)
        return rows if self.half_N is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)

    def answering(self, columns: slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[M, E]`` the other side: minus half the squared distance is q g - |g|^2 / 2 - |q|^2 / 2."""
        ids = self.gallery[columns]
        rows = self.rows(ids, dtype)
        return rows if self.half_N is None else torch.cat([rows, -self._half(ids, dtype)], 1)

    def offset(self, queries: Array, dtype: torch.dtype = torch.float32) -> Tensor | float:
        """``[B, 1]`` what is subtracted from the products of a query."""
        return 0.0 if self.half_N is None else self._half(self.queries[queries], dtype)

    def _half(self, ids: Array, dtype: torch.dtype) -> Tensor:
        assert self.half_N is not None
        return self.half_N[torch.as_tensor(ids, device=self.device), None].to(dtype)

    def tile(self, asked: Tensor, queries: Array, columns: slice) -> Tensor:
        """``[B, M]`` scores of some queries, ``asked`` of them, with a stretch of the gallery; in its precision."""
        if self.half_N is not None and asked.dtype == torch.float64:
            tile = self._from_distances(queries, columns)
        else:
            tile = asked @ self.answering(columns, asked.dtype).T
            if self.half_N is not None:
                tile -= self.offset(queries, asked.dtype)
        self._hide(tile, queries, columns)
        return tile

    def _from_distances(self, queries: Array, columns: slice) -> Tensor:
        """Float64 scores of l2, from differences of the rows as they were given: as exact as those of ``pairs``."""
        left, right = (
            self.embeddings[torch.as_tensor(ids, device=self.device)].double() * self.scale_N[0]
            for ids in (self.queries[queries], self.gallery[columns])
        )
        return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(-0.5)

    def _hide(self, tile: Tensor, queries: Array, columns: slice) -> None:
        """-inf where a query must not look: at itself, and at its group."""
        own_B = self.own_Q[queries] - columns.start
        here = np.flatnonzero((own_B >= 0) & (own_B < tile.shape[1]))
        tile[torch.as_tensor(here, device=self.device), torch.as_tensor(own_B[here], device=self.device)] = -torch.inf
        if self.groups is not None:
            same = self._same_group(queries, np.arange(columns.start, columns.start + tile.shape[1]))
            tile.masked_fill_(torch.from_numpy(same).to(self.device), -torch.inf)

    def hidden(self, queries: Array, columns: Array) -> Array:
        """``[B, K]`` whether a query must not look at its columns."""
        hidden: Array = columns == self.own_Q[queries][:, None]
        return hidden if self.groups is None else hidden | self._same_group(queries, columns)

    def _same_group(self, queries: Array, columns: Array) -> Array:
        assert self.groups is not None
        group_B1 = self.groups[self.queries[queries]][:, None]
        same: Array = (group_B1 == self.groups[self.gallery[columns]]) & (group_B1 >= 0)
        return same

    def pairs(self, queries: Array, columns: Array) -> Array:
        """``[P]`` float64 scores of single pairs of a query and a gallery item."""
        numbers = CHUNK // 2 if self.device.type == "cpu" else CHUNK << 5  # a GPU waits for the host at each piece
        result = np.empty(len(queries))
        for part in pieces(len(queries), numbers // self.embeddings.shape[1]):
            left, right = (
                torch.as_tensor(ids, device=self.device)
                for ids in (self.queries[queries[part]], self.gallery[columns[part]])
            )
            x, y = self.embeddings[left].double(), self.embeddings[right].double()
            if self.metric == "cosine":
                score = x.mul_(y).sum(1) * self.scale_N[left] * self.scale_N[right]
            else:
                score = -x.sub_(y).mul_(self.scale_N[left, None]).square_().sum(1) / 2
            result[part] = score.cpu().numpy()
        return result

    def published(self, scores: Array) -> Array:
        """Scores in the user's units: the cosine, or minus the squared distance; float32."""
        factor = 1.0 if self.metric == "cosine" else 2 / float(self.scale_N[0]) ** 2
        return (scores * factor).astype(np.float32)


def pieces(total: int, size: int) -> Iterator[slice]:
    """Stretches of at most so many (at least one) that make up the total."""
    size = max(size, 1)
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
