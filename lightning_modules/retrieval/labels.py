"""Which gallery items are relevant to a query: those of its class, without itself and without its group.

All in O(N log N): classes become consecutive numbers once, their members stand in one array behind each other.

Shape legend: N rows, Q queries, G gallery, C classes, P pairs.
"""

from __future__ import annotations

import numpy as np

from lightning_modules.retrieval.scores import Array


class Relevance:
    """Relevant gallery items of each query.

    Args:
        labels: ``[N]`` int64.
        queries: ``[Q]`` rows that ask.
        gallery: ``[G]`` rows that answer.
        own_Q: ``[Q]`` column of the query in the gallery, or -1.
        groups: ``[N]`` int64; a query ignores gallery items of its own group where that is not negative.

    Attributes:
        classes: ``[C]`` labels that occur, ascending.
        class_Q, class_G: numbers of the classes.
        total_Q: ``[Q]`` relevant items of each query.
    """

    def __init__(
        self, labels: Array, queries: Array, gallery: Array, own_Q: Array, groups: Array | None = None
    ) -> None:
        self.classes, class_N = np.unique(labels, return_inverse=True)
        self.class_Q, self.class_G, self.own_Q = class_N[queries], class_N[gallery], own_Q
        self.size_C = np.bincount(self.class_G, minlength=len(self.classes))
        self.member_G = np.argsort(self.class_G, kind="stable")
        self.first_C = np.cumsum(self.size_C) - self.size_C
        self.group_Q = self.group_G = None
        self.total_Q = self.size_C[self.class_Q] - (own_Q >= 0)
        if groups is not None:
            self.group_Q, self.group_G = groups[queries], groups[gallery]
            self.total_Q = self._without_groups(self.group_Q, self.group_G)

    def _without_groups(self, group_Q: Array, group_G: Array) -> Array:
        """``[Q]``: of each class, what is neither the query nor in its group."""
        code = np.unique(np.concatenate([group_Q, group_G]), return_inverse=True)[1] * len(self.classes)
        asked, stored = code[: len(group_Q)] + self.class_Q, np.sort(code[len(group_Q) :] + self.class_G)
        same_Q = np.searchsorted(stored, asked, "right") - np.searchsorted(stored, asked, "left")
        hidden_Q = np.where(group_Q >= 0, same_Q, self.own_Q >= 0)  # the query is in its own group
        return self.size_C[self.class_Q] - hidden_Q

    def hits(self, queries: Array, columns: Array) -> Array:
        """Whether columns are relevant to queries, elementwise; column -1 is not."""
        return (self.class_G[columns] == self.class_Q[queries]) & (columns >= 0)

    def pairs(self, queries: Array) -> tuple[Array, Array]:
        """Every relevant pair of some queries, ``[P]`` each: the place in ``queries``, and the gallery column."""
        kind = self.class_Q[queries]
        size = self.size_C[kind]
        place = np.repeat(np.arange(len(queries)), size)
        within = np.arange(len(place)) - np.repeat(np.cumsum(size) - size, size)
        column = self.member_G[self.first_C[kind][place] + within]
        seen = column != self.own_Q[queries][place]
        if self.group_Q is not None and self.group_G is not None:
            group = self.group_Q[queries][place]
            seen &= (group < 0) | (group != self.group_G[column])
        return place[seen], column[seen]
