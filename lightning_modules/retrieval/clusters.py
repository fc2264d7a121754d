"""How well k-means finds the classes: normalized and adjusted mutual information.

Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding" (2016), arXiv 1511.06452 (NMI
with k = number of classes); Vinh, Epps, Bailey, "Information Theoretic Measures for Clusterings Comparison" (2010),
JMLR 11 (AMI, which is 0 on average for a random clustering, while NMI grows with k).

Shape legend: N items, C classes, K clusters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

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
    import faiss

    vectors = np.ascontiguousarray(scores.rows(rows)[0].cpu().numpy(), dtype=np.float32)
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


def mutual_information(classes: Array, clusters: Array) -> tuple[float, float]:
    """NMI and AMI of two labellings ``[N]``, over the arithmetic mean of the entropies; 1 where both are trivial."""
    total = len(classes)
    first, second = (np.unique(labels, return_inverse=True)[1] for labels in (classes, clusters))
    a, b = np.bincount(first), np.bincount(second)
    if len(a) == len(b) == 1:
        return 1.0, 1.0
    pair, joint = np.unique(first * len(b) + second, return_counts=True)
    shares = joint / total
    information = float((shares * np.log(joint * total / (a[pair // len(b)] * b[pair % len(b)]))).sum())
    mean = (_entropy(a / total) + _entropy(b / total)) / 2
    expected = _expected_information(a, b, total)
    spread = mean - expected
    adjusted = (information - expected) / spread if abs(spread) > 1e-12 else float(information >= mean - 1e-12)
    return information / mean, adjusted


def _entropy(shares: Array) -> float:
    return float(-(shares * np.log(shares)).sum())


def _expected_information(a: Array, b: Array, total: int) -> float:
    """Mean mutual information of random labellings with these sizes, each pair of different sizes once."""
    log_factorial = np.array([math.lgamma(n + 1) for n in range(total + 1)])
    expected = 0.0
    for size_a, times_a in zip(*np.unique(a, return_counts=True), strict=True):
        for size_b, times_b in zip(*np.unique(b, return_counts=True), strict=True):
            n = np.arange(max(1, size_a + size_b - total), min(size_a, size_b) + 1)
            chance = (
                log_factorial[[size_a, size_b, total - size_a, total - size_b]].sum()
                - log_factorial[total]
                - log_factorial[n]
                - log_factorial[size_a - n]
                - log_factorial[size_b - n]
                - log_factorial[total - size_a - size_b + n]
            )
            terms = n / total * np.log(total * n / (size_a * size_b)) * np.exp(chance)
            expected += float(times_a * times_b * terms.sum())
    return expected
