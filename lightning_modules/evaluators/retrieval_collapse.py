"""Collapsed embeddings: rows so alike that ranks say more about the order of the rows than about the images."""

from __future__ import annotations

import math
import warnings

import torch

from lightning_modules.evaluators.neighbour_scores import CHUNK, Scores

SPREAD = 1e-3  # distance to the mean row, over the length of a row
TIED = 0.5


def collapse(scores: Scores, tied: float) -> dict[str, float]:
    """``embedding_std`` and ``tied_top1`` of collapsed embeddings, with a warning; nothing of others.

    Args:
        scores: whose rows are looked at, as the search sees them.
        tied: share of queries with several best neighbours.
    """
    rows = torch.arange(len(scores.embeddings)).numpy()
    step, width = max(CHUNK // scores.embeddings.shape[1], 1), scores.embeddings.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=scores.device)
    square = 0.0
    for start in range(0, len(rows), step):
        part = scores.rows(rows[start : start + step])[0]
        total += part.sum(0, dtype=torch.float64)
        square += float(part.pow(2).sum(dtype=torch.float64))
    mean, square = total / len(rows), square / len(rows)
    variance = max(square - float(mean @ mean), 0.0)
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
