"""The binary KL of logits against plain loops written from the formula."""

import math

import pytest
import torch
from taught import check_ten_steps, value_of

from kernels.batch import Output
from lightning_modules.regularizers.binary_kl import BinaryKL


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_values_by_loops(reduction):
    z, v = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    term = BinaryKL(weight=0.5, temperature=3.0, reduction=reduction)
    found = value_of(term, Output(logits=z), Output(logits=v), torch.zeros(4).long())
    for i in range(4):
        total = 0.0
        for c in range(3):
            p, q = sigmoid(float(v[i, c]) / 3), sigmoid(float(z[i, c]) / 3)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert float(found[i]) == pytest.approx(0.5 * 9 * total / (3 if reduction == "mean" else 1))


def test_ten_steps_equal_a_plain_loop():
    def by_hand(ours, theirs, batch, epoch):
        q, p = ((x / 2).sigmoid() for x in (ours.logits, theirs.logits))
        return 0.3 * 4 / len(batch) * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()

    check_ten_steps(BinaryKL(weight=0.3), by_hand)
