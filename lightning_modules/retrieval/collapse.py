"""Collapsed embeddings: rows so alike that ranks say more about the order of the rows than about the images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from lightning_modules.retrieval.scores import CHUNK, Array, Scores, pieces
from lightning_modules.retrieval.search import search

SPREAD = 1e-3  # distance to the mean row, over the length of a row
TIED = 0.5
SAMPLE = 64  # queries that are looked at


def best_is_tied(scores: Scores, asked: Array, among: Array) -> Array:
    """How many of a few queries have several best neighbours, and how many were looked at.

    Args:
        scores: of queries with the gallery.
        asked: ``[Q]`` rows of these queries, ascending.
        among: all queries, ``asked`` are some of them; those at even steps are looked at.
    """
    step = np.unique(np.linspace(0, len(among) - 1, SAMPLE).astype(int))
    part = np.flatnonzero(np.isin(asked, among[step]))
    sizes = [ranking.last_size for ranking in search(scores, 1, queries=part)]
    return np.array([sum((size > 1).sum() for size in sizes), len(part)], dtype=float)


def collapse(scores: Scores, tied: float) -> dict[str, float]:
    """``embedding_std`` and ``tied_top1`` of collapsed embeddings, with a warning; nothing of others.

    Args:
        scores: whose rows are looked at, as the search sees them.
        tied: share of queries with several best neighbours.
    """
    total, width = scores.embeddings.shape
    mean, square = scores.embeddings.new_zeros(width, dtype=torch.float64), 0.0
    for part in _parts(scores):
        mean += part.sum(0) / total
        square += float(part.norm()) ** 2 / total
    if tied < TIED and square - float(mean.norm()) ** 2 >= SPREAD**2 * square:
        return {}
    variance = sum(float((part - mean).norm()) ** 2 for part in _parts(scores)) / total
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
    for rows in pieces(len(scores.embeddings), CHUNK // scores.embeddings.shape[1]):
        part = scores.embeddings[rows].double()
        yield part * scores.scale_N[rows, None] if scores.metric == "cosine" else part
