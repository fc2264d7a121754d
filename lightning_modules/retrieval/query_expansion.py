"""alpha query expansion: a query becomes the weighted mean of itself and its nearest neighbours.

Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation" (2018), arXiv 1711.02512:
q' is proportional to q + sum over the k nearest g of max(cos(q, g), 0)^alpha g, all rows of length 1; alpha = 3.
"""

from __future__ import annotations

import numpy as np
import torch

from lightning_modules.retrieval.scores import Scores
from lightning_modules.retrieval.search import search


def expanded(scores: Scores, count: int, alpha: float = 3.0) -> Scores:
    """Scores of the expanded queries with the same gallery; a query still does not meet its own row there.

    Holds a copy of the gallery and the new queries.

    Args:
        scores: cosines of queries with the gallery.
        count: neighbours that join the query.
        alpha: how fast the weight falls with the cosine; 0 gives the plain mean.

    Raises:
        ValueError: the scores are no cosines.
    """
    if scores.metric != "cosine":
        raise ValueError("query expansion weights neighbours by their cosine: set metric=cosine or query_expansion=0")
    unit, total = scores.rows(scores.gallery, scores.embeddings.dtype), len(scores.gallery)
    asked = torch.empty(len(scores.queries), unit.shape[1], dtype=unit.dtype, device=scores.device)
    for ranking in search(scores, min(count, total)):
        near = torch.from_numpy(ranking.columns).to(scores.device)
        asking = np.repeat(ranking.queries, ranking.columns.shape[1])  # in float64: a ranking may know less of them
        cosine = torch.from_numpy(scores.pairs(asking, ranking.columns.ravel())).to(scores.device).view(near.shape)
        weight = torch.where(near >= 0, cosine.clamp(min=0) ** alpha, 0.0).to(unit.dtype)
        own = scores.rows(scores.queries[ranking.queries], unit.dtype)
        asked[ranking.queries] = torch.baddbmm(own[:, None], weight[:, None], unit[near.clamp(min=0)])[:, 0]
    matrix = torch.cat([unit, asked])
    queries = np.arange(total, len(matrix))
    groups = None if scores.groups is None else scores.groups[np.concatenate([scores.gallery, scores.queries])]
    return Scores(matrix, queries, np.arange(total), "cosine", groups, scores.own_Q)
