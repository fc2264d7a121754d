"""Knowledge distillation against plain loops written from the formula."""

import math

import pytest
import torch
from taught import check_ten_steps, value_of
from torch.nn.functional import kl_div

from kernels.batch import Output
from lightning_modules.regularizers.kd import KD


def softened(row, temperature):
    total = sum(math.exp(x / temperature) for x in row)
    return [math.exp(x / temperature) / total for x in row]


def test_values_by_loops():
    z, v = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = value_of(KD(weight=0.9, temperature=3.0), Output(logits=z), Output(logits=v), torch.zeros(4).long())
    for i in range(4):
        p, q = softened(v[i].tolist(), 3.0), softened(z[i].tolist(), 3.0)
        assert float(found[i]) == pytest.approx(0.9 * 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_ten_steps_equal_a_plain_loop():
    def by_hand(ours, theirs, batch, epoch):
        if epoch >= 4:
            return 0.0
        target, own = (theirs.logits / 4).softmax(1), (ours.logits / 4).log_softmax(1)
        return 0.9 * min(1, (epoch + 1) / 2) * 16 * kl_div(own, target, reduction="batchmean")

    check_ten_steps(KD(weight=0.9, temperature=4.0, warmup_epochs=2, stop_epoch=4), by_hand)
