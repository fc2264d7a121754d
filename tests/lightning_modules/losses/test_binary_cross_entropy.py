"""One-against-rest binary cross-entropy against sums written out."""

import math

import pytest
import torch

from kernels.batch import Batch, Output
from lightning_modules.losses.binary_cross_entropy import BinaryCrossEntropy

LABELS = [2, 0, 1]
SOFT = [[0.25, 0.25, 0.5], [0.8, 0.2, 0.0], [0.0, 1.0, 0.0]]


@pytest.fixture
def logits():
    return torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2


def loss_of(logits, label, **keys):
    batch = Batch(image=torch.zeros(len(logits), 3, 1, 1), label=label, index=torch.arange(len(logits)))
    (loss,) = BinaryCrossEntropy(**keys)({"main": Output(logits=logits)}, batch, None).values()
    return loss


def by_hand(logits, targets, average=True):
    """``-[t log s(z) + (1 - t) log(1 - s(z))]`` over classes, in Python floats."""
    losses = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        shares = [1 / (1 + math.exp(-z)) for z in row]
        terms = [-t * math.log(s) - (1 - t) * math.log(1 - s) for s, t in zip(shares, target, strict=True)]
        losses.append(sum(terms) / (len(row) if average else 1))
    return torch.tensor(losses, dtype=torch.float64)


def one_hot():
    return [[float(c == label) for c in range(3)] for label in LABELS]


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_values(logits, smoothing, sum_classes):
    targets = [[(1 - smoothing) * t + smoothing / 3 for t in row] for row in one_hot()]
    found = loss_of(logits, torch.tensor(LABELS), label_smoothing=smoothing, sum_classes=sum_classes)
    torch.testing.assert_close(found, by_hand(logits, targets, not sum_classes), rtol=0, atol=1e-12)


def test_soft_labels_and_the_threshold(logits):
    label = torch.tensor(SOFT, dtype=torch.float64)
    torch.testing.assert_close(loss_of(logits, label), by_hand(logits, SOFT), rtol=0, atol=1e-12)
    hard = [[float(t > 0.2) for t in row] for row in SOFT]
    assert hard == [[1, 1, 1], [1, 0, 0], [0, 1, 0]], "strictly above"
    torch.testing.assert_close(loss_of(logits, label, target_threshold=0.2), by_hand(logits, hard), rtol=0, atol=1e-12)


def test_the_threshold_applies_after_smoothing(logits):
    """0.3 of smoothing over three classes puts 0.1 on every class: above 0.05, all count as present."""
    found = loss_of(logits, torch.tensor(LABELS), label_smoothing=0.3, target_threshold=0.05)
    torch.testing.assert_close(found, by_hand(logits, [[1.0] * 3] * 3), rtol=0, atol=1e-12)


def test_gradient_is_sigmoid_minus_target_over_classes(logits):
    logits.requires_grad_()
    loss_of(logits, torch.tensor(LABELS)).sum().backward()
    expected = (1 / (1 + (-logits.detach()).exp()) - torch.tensor(one_hot(), dtype=torch.float64)) / 3
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_classes_are_independent(logits):
    """Unlike softmax: another class's logit changes that class's term only."""
    other = logits.clone()
    other[:, 0] += 5
    changed = loss_of(other, torch.tensor(LABELS), sum_classes=True) - loss_of(
        logits, torch.tensor(LABELS), sum_classes=True
    )
    column = [[row[0]] for row in one_hot()]
    expected = by_hand(other[:, :1], column) - by_hand(logits[:, :1], column)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-12)


def test_at_least_float32_and_finite_at_the_edge():
    found = loss_of(torch.tensor([[500.0, -500.0]], dtype=torch.bfloat16), torch.tensor([1]))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(500, rel=1e-2)


def test_refusals():
    with pytest.raises(ValueError, match="label_smoothing=1 is out of range; allowed: 0 <= label_smoothing < 1"):
        BinaryCrossEntropy(label_smoothing=1)
