"""Agreement of two labellings: normalized and adjusted mutual information.

Source: Vinh, Epps, Bailey, "Information Theoretic Measures for Clusterings Comparison" (2010), JMLR 11 (AMI, which is 0
on average for a random clustering, while NMI grows with the number of clusters).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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
