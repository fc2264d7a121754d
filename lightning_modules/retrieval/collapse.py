"""Collapsed embeddings: rows so alike that ranks say more about the order of the rows than about the images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch

from lightning_modules.retrieval.scores import CHUNK, Scores

SPREAD = 1e-3  # distance to the mean row, over the length of a row
TIED = 0.5


def collapse(scores: Scores, tied: float) -> dict[str, float]:
    """``embedding_std`` and ``tied_top1`` of collapsed embeddings, with a warning; nothing of others.

    Args:
        scores: whose rows are looked at, as the search sees them.
        tied: share of queries with several best neighbours.
    """
    mean = sum(part.sum(0) for part in _parts(scores)) / len(scores.embeddings)
    square = sum(float(part.square().sum()) for part in _parts(scores)) / len(scores.embeddings)
    variance = sum(float((part - mean).square().sum()) for part in _parts(scores)) / len(scores.embeddings)
    width = scores.embeddings.shape[1]
    if tied < TIED and variance >= SPREAD**2 * square:
        return {}
    found = {"embedding_std": math.sqrt(variance / width), "tied_top1": tied}
    warnings.warn(
        f"the embeddings look collapsed, or are mostly copies: standard deviation {found['embedding_std']:.2g} of a "
        f"dimension, and {tied:.0%} of the queries have several best neighbours; metrics then say more about the order "
        "of equal scores (ties=expected gives the mean over all orders) than about the images",
        UserWarning,
        stacklevel=3,
    )
    return found


def _parts(scores: Scores) -> Iterator[torch.Tensor]:
    """The rows in float64, some at a time: of length 1 under cosine, else as they were given."""
    step = max(CHUNK // scores.embeddings.shape[1], 1)
    for start in range(0, len(scores.embeddings), step):
        part = scores.embeddings[start : start + step].double()
        yield part / part.norm(dim=1, keepdim=True) if scores.metric == "cosine" else part
