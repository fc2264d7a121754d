"""DIST against plain loops written from the formula."""

import pytest
import torch
from taught import check_ten_steps, value_of

from kernels.batch import Output
from lightning_modules.regularizers.dist import DIST


def pearson(a, b):
    """Of two rows, by sums over their entries."""
    a, b = a - a.sum() / len(a), b - b.sum() / len(b)
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt() + 1e-8)


def by_loops(z, v, temperature, beta, gamma):
    ours, theirs = (z / temperature).softmax(1), (v / temperature).softmax(1)
    inter = sum(pearson(ours[i], theirs[i]) for i in range(len(z))) / len(z)
    intra = sum(pearson(ours[:, c], theirs[:, c]) for c in range(z.shape[1])) / z.shape[1]
    return temperature**2 * (beta * (1 - inter) + gamma * (1 - intra))


def test_values_by_loops():
    z, v = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    term = DIST(weight=0.7, temperature=2.0, beta=1.5, gamma=0.5)
    found = value_of(term, Output(logits=z), Output(logits=v), torch.zeros(5).long())
    assert found.ndim == 0 and float(found) == pytest.approx(0.7 * float(by_loops(z, v, 2.0, 1.5, 0.5)))


def test_ten_steps_equal_a_plain_loop():
    def by_hand(ours, theirs, batch, epoch):
        return 2.0 * min(1, (epoch + 1) / 2) * by_loops(ours.logits, theirs.logits, 4.0, 1.0, 1.0)

    check_ten_steps(DIST(weight=2.0, warmup_epochs=2), by_hand)
