"""Scores between rows of one embedding matrix, tile by tile, with bounds on their rounding errors.

A score is larger for closer rows: the cosine, or minus half the squared distance. Tiles are computed in float32 for
speed; ``error`` bounds how far such a score is from the true one, so that a search knows which comparisons it may
trust. The others are decided by ``pairs`` or by float64 tiles, whose scores count as equal within ``tie``.

Nothing here is as large as the embeddings: rows are scaled when their tile is computed.

Shape legend: N rows, D dimensions, Q queries, G gallery, B queries of a tile, M gallery columns of a tile.
"""

from __future__ import annotations

import copy
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
        whole_rows: a score is not made of two rows alone, so that there are no float32 tiles to search.
        error: bound on the rounding error of a float32 score.
        tie: float64 scores that differ by no more are equal.
        own_Q: column of the query itself in the gallery, -1 where it is not there.
        symmetric: queries and gallery are the same rows, so that a tile serves in both directions.
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
        self.group_Q = None if groups is None else torch.as_tensor(groups[queries], device=self.device)
        self.group_G = None if groups is None else torch.as_tensor(groups[gallery], device=self.device)
        self.symmetric = groups is None and len(queries) == len(gallery) and bool((queries == gallery).all())
        self._measure()

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    def _measure(self) -> None:
        """Lengths of the rows, and from them the bounds.

        A float32 product of rows with D terms, added in any order, is off by at most D u |q| |g|, with u = 2^-24; a row
        that was scaled and rounded first adds 2 u, the subtraction of the squared lengths 6 u.
        """
        dimensions, device = self.embeddings.shape[1], self.device
        self.center = torch.zeros(dimensions, dtype=torch.float64, device=device)
        if self.metric == "l2":  # distances do not depend on it, but their rounding errors do
            for part in self.embeddings.split(max(CHUNK // dimensions, 1)):
                self.center += part.sum(0, dtype=torch.float64) / len(self.embeddings)
        length_N = self.center.new_empty(len(self.embeddings))  # made first: what is kept would pin freed temporaries
        step = max(CHUNK // dimensions, 1)
        for start in range(0, len(length_N), step):
            length_N[start : start + step] = self._centered(self.embeddings[start : start + step]).norm(dim=1)
        if self.metric == "cosine":
            self.scale_N, largest = 1 / length_N, 1.0
            self.half_N = None
        else:
            power = 2.0 ** -np.ceil(np.log2(max(float(length_N.max()), 1e-300)))  # a power of two rounds nothing
            self.scale_N = torch.full_like(length_N, power)
            self.half_N, largest = (length_N * power) ** 2 / 2, float(length_N.max()) * power
        products = largest**2 if self.half_N is None else 2 * largest**2  # bound on |q| |g|, with the squared lengths
        self.error = 1.01 * 2.0**-24 * (dimensions + 16) * products
        self.tie = 2.0**-43 * products
        stray = float((length_N - 1).abs().max())
        self.unit = self.half_N is None and self.embeddings.dtype == torch.float32 and stray < 2.0**-20
        self.error += 2.1 * stray * self.unit  # unit rows are multiplied as they are

    def narrowed(self, queries: slice, columns: slice) -> Scores:
        """The same scores of some queries with a stretch of the gallery."""
        part = copy.copy(self)
        part.queries, part.gallery, part.symmetric = self.queries[queries], self.gallery[columns], False
        own_Q = self.own_Q[queries] - columns.start
        part.own_Q = np.where((own_Q >= 0) & (own_Q < len(part.gallery)), own_Q, -1)
        if self.group_Q is not None and self.group_G is not None:
            part.group_Q, part.group_G = self.group_Q[queries], self.group_G[columns]
        return part

    def _centered(self, rows: Tensor) -> Tensor:
        return rows - self.center if self.metric == "l2" else rows.double()  # float64 as well: the center is

    def rows(self, ids: Array, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        """Rows of the matrix as they are multiplied, ``[B, D]``, with half their squared lengths under l2.

        Args:
            ids: ``[B]`` rows, ascending.
            dtype: bfloat16 (cosine only), float32 or float64.
        """
        contiguous = len(ids) > 0 and ids[-1] - ids[0] == len(ids) - 1
        where: Any = slice(int(ids[0]), int(ids[-1]) + 1) if contiguous else torch.as_tensor(ids, device=self.device)
        rows, scale = self.embeddings[where], self.scale_N[where, None]
        half = None if self.half_N is None else self.half_N[where].to(dtype)
        wide = torch.promote_types(self.embeddings.dtype, torch.promote_types(dtype, torch.float32))
        if self.unit and wide == torch.float32:
            return rows.to(dtype), half
        result = torch.empty_like(rows, dtype=dtype)
        step = max(CHUNK // rows.shape[1] if self.device.type == "cpu" else len(rows), 1)  # for small temporaries
        for a in range(0, len(rows), step):
            part, by = rows[a : a + step], scale[a : a + step]
            result[a : a + step] = part.to(wide) * by.to(wide) if half is None else self._centered(part).mul_(by)
        return result, half

    def tile(
        self, asked: tuple[Tensor, Tensor | None], queries: Array, columns: slice, buffer: Tensor | None = None
    ) -> Tensor:
        """``[B, M]`` scores of some queries with a stretch of the gallery.

        Args:
            asked: ``rows`` of these queries.
            queries: ``[B]`` positions among the queries.
            columns: stretch of the gallery.
            buffer: memory for at least B M scores.
        """
        rows_BD, half_B = asked
        rows_MD, half_M = self.rows(self.gallery[columns], rows_BD.dtype)
        shape = len(rows_BD), len(rows_MD)
        out = rows_BD.new_empty(shape) if buffer is None else buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(rows_BD, rows_MD.T, out=out)
        if half_B is not None and half_M is not None:
            out.sub_(half_M).sub_(half_B[:, None])
        self._hide(out, queries, columns)
        return out

    def _hide(self, scores_BM: Tensor, queries: Array, columns: slice) -> None:
        """-inf where a query must not look: at itself, and at its group."""
        own_B = self.own_Q[queries] - columns.start
        here = ((own_B >= 0) & (own_B < scores_BM.shape[1])).nonzero()[0]
        place = torch.as_tensor(here, device=self.device), torch.as_tensor(own_B[here], device=self.device)
        scores_BM[place] = -torch.inf
        if self.group_Q is not None and self.group_G is not None:
            group_B = self.group_Q[torch.as_tensor(queries, device=self.device)][:, None]
            scores_BM.masked_fill_((group_B == self.group_G[columns]) & (group_B >= 0), -torch.inf)

    def near(self, queries: Array, columns: Array) -> Array:
        """``[B, L]`` float32 cosines of queries with some columns each; of anything where a column is -1."""
        total, width = columns.shape
        size = max(CHUNK // (width * self.embeddings.shape[1]), 1)
        asked, found = self._buffer(size), self._buffer(size * width)
        result = np.empty(columns.shape, dtype=np.float32)
        for a in range(0, total, size):
            left, right = self.queries[queries[a : a + size]], self.gallery[columns[a : a + size]]
            rows = self._taken(right.ravel(), found).view(len(left), width, -1)
            own = self._taken(left, asked)
            if not self.unit:  # products of the rows as they are could overflow
                rows.mul_(self.scale_N[right][..., None].to(rows.dtype))
                own.mul_(self.scale_N[left, None].to(own.dtype))
            result[a : a + size] = rows.mul_(own[:, None]).sum(2).cpu().numpy()
        return result

    def pairs(self, queries: Array, columns: Array) -> Array:
        """``[P]`` float64 scores of single pairs of a query and a gallery item."""
        numbers = CHUNK // 2 if self.device.type == "cpu" else CHUNK << 5  # a GPU waits for the host at each piece
        size = max(min(numbers // self.embeddings.shape[1], len(queries)), 1)
        rows = self._buffer(size)
        wide = [torch.empty_like(rows, dtype=torch.float64) for _ in range(2)]
        result = np.empty(len(queries))
        for a in range(0, len(queries), size):
            left, right = self.queries[queries[a : a + size]], self.gallery[columns[a : a + size]]
            x, y = (kept[: len(left)] for kept in wide)
            x.copy_(self._taken(left, rows))
            y.copy_(self._taken(right, rows))
            if self.metric == "cosine":
                score = x.mul_(y).sum(1) * self.scale_N[left] * self.scale_N[right]
            else:
                score = -x.sub_(y).mul_(self.scale_N[left, None]).square_().sum(1) / 2
            result[a : a + size] = score.cpu().numpy()
        return result

    def _buffer(self, rows: int) -> Tensor:
        return self.embeddings.new_empty(rows, self.embeddings.shape[1])

    def _taken(self, ids: Array, buffer: Tensor) -> Tensor:
        """Rows of the matrix, in any order, in the buffer."""
        where = torch.as_tensor(ids, device=self.device)
        return torch.index_select(self.embeddings, 0, where, out=buffer[: len(ids)])

    def published(self, scores: Array) -> Array:
        """Scores in the user's units: the cosine, or minus the squared distance; float32."""
        factor = 1.0 if self.metric == "cosine" else 2 / float(self.scale_N[0]) ** 2
        return (scores * factor).astype(np.float32)
