"""How well k-means finds the classes: normalized and adjusted mutual information.

Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding" (2016), arXiv 1511.06452 (NMI
with k = number of classes); the measures are in ``kernels/mutual_information.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.mutual_information import mutual_information
from lightning_modules.retrieval.index import faiss_for
from lightning_modules.retrieval.scores import Array, Scores

SEEDS = 5


def cluster_metrics(scores: Scores, rows: Array, classes: Array, seeds: int = SEEDS) -> dict[str, float]:
    """``nmi`` and ``ami``, means over k-means runs (20 iterations each) with as many clusters as classes.

    Args:
        scores: whose rows are clustered, unit ones under cosine.
        rows: ``[N]`` which rows.
        classes: ``[N]`` class of each.
        seeds: number of runs.
    """
    faiss = faiss_for("clusters=true")
    vectors = np.ascontiguousarray(scores.rows(rows).cpu().numpy(), dtype=np.float32)
    count, found = len(np.unique(classes)), []
    for seed in range(seeds):
        kmeans: Any = faiss.Kmeans(
            vectors.shape[1],
            count,
            niter=20,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),
        )
        kmeans.train(vectors)
        found.append(mutual_information(classes, kmeans.index.search(vectors, 1)[1][:, 0]))
    nmi, ami = np.mean(found, axis=0)
    return {"nmi": float(nmi), "ami": float(ami)}
