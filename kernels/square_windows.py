"""Windows of Square Attack: their size over the queries, what is put into them, and where they lie.

Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a query-efficient black-box adversarial attack via random
search". ECCV 2020, arXiv 1912.00049.

Shape legend: B samples, H x W pixels, S side of a window.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

import torch
from torch import Tensor

#: Queries, of 10,000, after which the share of pixels in a window is halved once more.
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def share(query: int, p_init: float) -> float:
    """Share of the pixels that a window covers at a query, from 0 on.

    Example:
        >>> share(10, 0.8), share(11, 0.8), share(9999, 0.8) * 512
        (0.8, 0.4, 0.8)
    """
    return float(p_init / 2.0 ** bisect_left(HALVED, query))


def side(portion: float, height: int, width: int, least: int = 1) -> int:
    """Side of a square window of this share of the pixels: at least ``least``, and at most what the image has."""
    return min(max(round((portion * height * width) ** 0.5), least), height, width)


@lru_cache(maxsize=64)
def bumps(size: int) -> Tensor:
    """``[S, S]`` float64 of norm 1: a rounded pyramid in the upper half and its negative in the lower (L2, eq. 2)."""
    upper, lower = _pyramid(size // 2, size), _pyramid(size - size // 2, size)
    both = torch.cat([upper, -lower])
    return both / both.norm()


def _pyramid(height: int, width: int) -> Tensor:
    """``sum 1 / j**2`` over j from the distance to the centre (in the maximum norm) + 1 to half the longer side + 1."""
    rows, columns = (torch.arange(length) - length // 2 for length in (height, width))
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** 2
    found = terms.flip(0).cumsum(0).flip(0)[distance]
    return found / found.norm().clamp(min=1e-12)


def places(number_B: Tensor, length: int, size: int) -> Tensor:
    """``[B]`` int64 first row (or column) of a window, equally likely from 0 to ``length - size``.

    Args:
        number_B: uniform in [0, 1].
    """
    choices = length - size + 1
    return (number_B * choices).long().clamp_(max=choices - 1)


def pixels(top_B: Tensor, left_B: Tensor, size: int, width: int) -> Tensor:
    """``[B, S * S]`` positions of a window's pixels in the flattened image."""
    along = torch.arange(size, device=top_B.device)
    row_BS, column_BS = top_B[:, None] + along, left_B[:, None] + along
    return (row_BS[:, :, None] * width + column_BS[:, None]).flatten(1)
