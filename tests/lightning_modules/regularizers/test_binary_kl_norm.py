"""The term of dual-head distillation against the official form, and its two heads against a plain loop."""

import math

import pytest
import torch
from taught import check_same, check_ten_steps, plain_loop, small, teacher, together, train, value_of

from kernels.batch import Output
from lightning_modules.heads.dual import Dual
from lightning_modules.regularizers.binary_kl_norm import BinaryKLNorm


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_values_by_loops(reduction):
    a, v = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    term = BinaryKLNorm(weight=0.5, temperature=3.0, reduction=reduction)
    found = value_of(term, Output(logits=a), Output(logits=v), torch.zeros(4).long())
    for i in range(4):
        total = 0.0
        for c in range(3):
            s = 1 / (1 + math.exp(-float(a[i, c] - v[i, c]) / 3))
            total += 0.5 * math.log(0.5 / s) + 0.5 * math.log(0.5 / (1 - s))
        assert float(found[i]) == pytest.approx(0.5 * 9 * total / (3 if reduction == "mean" else 1))


def official(a, v):
    s = ((a - v) / 2).sigmoid()
    return 4 / len(a) * (0.5 * (0.5 / s).log() + 0.5 * (0.5 / (1 - s)).log()).sum()


def test_ten_steps_equal_a_plain_loop():
    check_ten_steps(BinaryKLNorm(weight=0.3), lambda ours, theirs, *_: 0.3 * official(ours.logits, theirs.logits))


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_ten_steps_with_two_heads(kind, monkeypatch):
    """The dropout of the non-linear head is left off: its masks are no subject of a comparison."""
    monkeypatch.setattr("lightning_modules.heads.dual.DROPOUT_PROB", 0.0)
    keys = {"head": Dual, "head_keys": {"auxiliary": kind}}
    student, plain = small(**keys), small(**keys)
    parts = together(BinaryKLNorm(head="auxiliary", stop_epoch=3), student, [teacher()])
    train(parts, student)

    def by_hand(ours, theirs, batch, epoch):
        weight = 1.0 if epoch < 3 else 0.0
        return weight * official(plain.head.auxiliary(ours.features), theirs.logits)

    plain_loop(plain, teacher().eval(), by_hand)
    check_same(student, plain)
