"""How evenly embeddings fill the sphere, and how near those of one class lie: what a temperature trades.

Wang, Isola. "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere".
ICML 2020, arXiv 2005.10242. Wang, Liu. "Understanding the Behaviour of Contrastive Loss". CVPR 2021, arXiv 2012.09740.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from kernels.pairs import pair_masks, similarities


def uniformity(embeddings_BD: Tensor, t: float = 2.0) -> Tensor:
    """``log mean exp(-t |x - y|^2)`` over the pairs of two samples, x and y of length 1: from -4t to 0, low is even.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here.
        t: > 0.

    Returns:
        A scalar, in at least float32; NaN for fewer than two samples, where there is nothing to measure.

    Raises:
        ValueError: t not positive.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)
    """
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    count = len(embeddings_BD)
    row, column = torch.triu_indices(count, count, 1, device=embeddings_BD.device)
    if not len(row):
        return similarities(embeddings_BD).sum() * float("nan")
    return (2 * t * (similarities(embeddings_BD)[row, column] - 1)).logsumexp(0) - log(len(row))


def tolerance(embeddings_BD: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cosine similarity over the pairs of one class.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here.
        labels_B: ``[B]`` integer classes.

    Returns:
        A scalar, in at least float32; NaN without such a pair, where there is nothing to measure.

    Raises:
        ValueError: labels that are not integers.

    Example:
        >>> tolerance(torch.eye(2), torch.tensor([0, 0]))
        tensor(0.)
    """
    return similarities(embeddings_BD)[pair_masks(labels_B)[0]].mean()
