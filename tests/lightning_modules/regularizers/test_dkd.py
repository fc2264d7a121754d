"""Decoupled knowledge distillation against plain loops written from the formula."""

import math

import pytest
import torch
from taught import check_ten_steps, value_of

from kernels.batch import Output
from lightning_modules.regularizers.dkd import DKD


def decoupled(z, v, label, alpha, beta, T):
    """One sample, by its probabilities."""
    q, p = ([math.exp(x / T) / sum(math.exp(y / T) for y in row) for x in row] for row in (z, v))
    q_y, p_y = q[label], p[label]
    target = p_y * math.log(p_y / q_y) + (1 - p_y) * math.log((1 - p_y) / (1 - q_y))
    others = [c for c in range(len(z)) if c != label]
    rest = sum(p[c] / (1 - p_y) * math.log(p[c] / (1 - p_y) / (q[c] / (1 - q_y))) for c in others)
    return T * T * (alpha * target + beta * rest)


def test_values_by_loops():
    z, v = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 3, 1])
    term = DKD(weight=2.0, alpha=1.5, beta=3.0, temperature=2.0, warmup_epochs=0)
    found = value_of(term, Output(logits=z), Output(logits=v), label)
    for i in range(5):
        expected = 2 * decoupled(z[i].tolist(), v[i].tolist(), int(label[i]), 1.5, 3.0, 2.0)
        assert float(found[i]) == pytest.approx(expected)


def test_the_papers_defaults():
    term = DKD()
    assert (term.weight, term.alpha, term.beta, term.temperature, term.warmup_epochs) == (1.0, 1.0, 8.0, 4.0, 20)
    assert term.weight_at(0) == 1 / 20 and term.weight_at(19) == term.weight_at(30) == 1.0


def test_ten_steps_equal_a_plain_loop():
    """As the official code has it: the label's class masked by subtracting 1000."""

    def by_hand(ours, theirs, batch, epoch):
        mask = torch.nn.functional.one_hot(batch.label, 3).double()
        q, p = ((x / 4).softmax(1) for x in (ours.logits, theirs.logits))
        pair_q, pair_p = (torch.stack([(x * mask).sum(1), (x * (1 - mask)).sum(1)], 1) for x in (q, p))
        target = (pair_p * (pair_p / pair_q).log()).sum() * 16 / len(batch)
        rest_q, rest_p = ((x / 4 - 1000 * mask).log_softmax(1) for x in (ours.logits, theirs.logits))
        rest = (rest_p.exp() * (rest_p - rest_q)).sum() * 16 / len(batch)
        return 0.5 * min(1, (epoch + 1) / 3) * (target + 8 * rest)

    check_ten_steps(DKD(weight=0.5, warmup_epochs=3), by_hand)
