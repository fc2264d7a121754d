"""Mutual information against a plain sum, and against random labellings."""

import math

import numpy as np
import pytest

from kernels.mutual_information import mutual_information


def test_mutual_information_by_hand():
    classes, clusters = np.array([0, 0, 1, 1, 2, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 2, 2, 2])

    def information(a, b):
        joint, total = {}, len(a)
        for pair in zip(a, b, strict=True):
            joint[pair] = joint.get(pair, 0) + 1
        return sum(n / total * math.log(n * total / (sum(a == i) * sum(b == j))) for (i, j), n in joint.items())

    mean = (information(classes, classes) + information(clusters, clusters)) / 2
    rng = np.random.default_rng(0)
    chance = np.mean([information(classes, rng.permutation(clusters)) for _ in range(4000)])
    nmi, ami = mutual_information(classes, clusters)
    assert nmi == pytest.approx(information(classes, clusters) / mean, abs=1e-12)
    assert ami == pytest.approx((information(classes, clusters) - chance) / (mean - chance), abs=0.02)
    assert mutual_information(classes, classes) == pytest.approx((1, 1))
    assert mutual_information(np.zeros(5), np.ones(5)) == (1.0, 1.0)
    assert mutual_information(classes, np.arange(8))[1] == pytest.approx(0, abs=1e-9), "singletons say nothing"
