"""Training sets with few samples of some classes: how many of each, and which.

Cao, Wei, Gaidon, Arechiga, Ma. "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss". NeurIPS 2019,
arXiv 1906.07413. The exponential profile is that of Cui, Jia, Lin, Song, Belongie 2019, arXiv 1901.05555; the step
profile that of Buda, Maki, Mazurowski 2018, arXiv 1710.05381, with half of the classes rare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from datamodules.order.split import drawn_rank

Profile = Literal["exponential", "step"]
PROFILES: tuple[str, ...] = get_args(Profile)


def shares(profile: str, classes: int, ratio: float) -> list[float]:
    """``n_c / n_max`` of each class, in the order of the labels: from 1 down to ``1 / ratio``.

    ``exponential``: ``ratio ** (-c / (C - 1))``. ``step``: 1 for the first ``C // 2`` classes, ``1 / ratio`` for the
    others.

    Args:
        profile: one of ``PROFILES``.
        classes: C, at least 2.
        ratio: of the largest class to the smallest.

    Example:
        >>> shares("exponential", 3, 100), shares("step", 4, 2)
        ([1.0, 0.1, 0.01], [1.0, 1.0, 0.5, 0.5])
    """
    if profile == "exponential":
        return [ratio ** (-label / (classes - 1)) for label in range(classes)]
    return [1.0 if label < classes // 2 else 1 / ratio for label in range(classes)]


def imbalanced_counts(counts_C: Tensor, profile: str, ratio: float, classes: Sequence[str]) -> Tensor:
    """``[C]`` how many samples of each class are kept: ``floor(n_max * share)``.

    ``n_max`` is the largest number with which every class has as many as the formula asks for: the size of a class
    where all have the same, and less where a class that should be large is small. So the ratio is the one asked for.

    Args:
        counts_C: samples there are.
        profile: one of ``PROFILES``.
        ratio: of the largest class to the smallest, before rounding down.
        classes: their names, for the message.

    Raises:
        ValueError: there is one class only, or one of which nothing would be left.

    Example:
        >>> imbalanced_counts(torch.tensor([50, 50, 50]), "exponential", 10, "abc").tolist()
        [50, 15, 5]
    """
    if len(counts_C) < 2:
        raise ValueError(f"data.imbalance={profile} needs a second class; there is one, set data.imbalance=null")
    share_C = shares(profile, len(counts_C), ratio)
    most = min(count / share for count, share in zip(counts_C.tolist(), share_C, strict=True))
    kept = [math.floor(most * share + 1e-6) for share in share_C]  # 5000 * 100 ** -1 may be 49.999...
    if min(kept) < 1:
        label = kept.index(min(kept))
        raise ValueError(
            f"data.imbalance_ratio={ratio:g} leaves no sample of class {classes[label]!r}: the largest class has "
            f"{math.floor(most)} of {int(counts_C.max())}. Use a smaller ratio, or more images"
        )
    return torch.tensor(kept)


def thin_out(labels: Tensor, index: Tensor, keep_C: Tensor, seed: int) -> Tensor:
    """``keep_C[c]`` positions of each class ``c``, drawn by ``seed``, in the order they had.

    A larger number keeps what a smaller one does: the sets of two ratios lie inside one another, as far as their
    counts do.

    Args:
        labels: ``[N]`` class of every sample of the full set.
        index: positions to choose from.
        keep_C: how many of each class.
        seed: of the choice.
    """
    group, rank = drawn_rank(labels, index, seed, "imbalance")
    return index[rank < keep_C[group]]
