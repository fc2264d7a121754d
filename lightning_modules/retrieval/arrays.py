"""Operations on long arrays: faster than numpy's general ones where little is set and numbers are small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lightning_modules.retrieval.scores import Array


def places(mask: Array) -> Array:
    """Positions of the few entries of a contiguous mask that are set, ascending, counted along its rows.

    Eight entries are looked at as one 64-bit number.
    """
    flat = mask.reshape(-1)
    end = len(flat) & ~7
    bytes_ = flat[:end].reshape(-1, 8)
    words = np.flatnonzero(bytes_.view(np.uint64) != 0)
    inside = np.flatnonzero(bytes_.take(words, axis=0))
    found = words.take(inside >> 3) * 8 + (inside & 7)
    return found if end == len(flat) else np.concatenate([found, np.flatnonzero(flat[end:]) + end])


def by_number(numbers: Array, bound: int) -> Array:
    """The order that sorts integers from 0 to below a bound, equal ones as they came."""
    small = numbers.astype(np.uint16) if bound <= 1 << 16 else numbers  # 16 bits are sorted by counting
    return np.argsort(small, kind="stable")


class Waiting:
    """Arrays that wait for work, side by side: much at once is done faster.

    Their memory is made once: pieces that are kept would leave gaps between others that are freed.

    Args:
        most: how many wait at once.
        *dtypes: of the arrays.
    """

    def __init__(self, most: int, *dtypes: type) -> None:
        self.arrays: list[Array] = [np.empty(most, dtype=dtype) for dtype in dtypes]
        self.most, self.size = most, 0

    def add(self, work: Callable[..., None], *arrays: Array) -> None:
        """More of them, equally many of each; work on those that wait where there is no room."""
        more = len(arrays[0])
        if more > self.most:
            work(*arrays)
            return
        if self.size + more > self.most:
            self.finish(work)
        for kept, array in zip(self.arrays, arrays, strict=True):
            kept[self.size : self.size + more] = array
        self.size += more

    def finish(self, work: Callable[..., None]) -> None:
        """Work on all that wait."""
        size, self.size = self.size, 0
        if size:
            work(*(array[:size] for array in self.arrays))
