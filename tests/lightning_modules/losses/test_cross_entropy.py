"""Softmax cross-entropy against sums written out, its gradient in closed form, and its limits."""

import math

import pytest
import torch

from kernels.batch import Batch, Output
from lightning_modules.losses.cross_entropy import CrossEntropy


def loss_of(logits, label, **keys):
    batch = Batch(image=torch.zeros(len(logits), 3, 1, 1), label=label, index=torch.arange(len(logits)))
    (loss,) = CrossEntropy(**keys)({"main": Output(logits=logits)}, batch, None).values()
    return loss


def by_hand(logits, targets):
    """``-sum_c t_c log(e^z_c / sum e^z)`` in Python floats."""
    losses = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        losses.append(-sum(t * (z - total) for z, t in zip(row, target, strict=True)))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.fixture
def logits():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


HARD = [2, 0, 0, 1]
SOFT = [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.9, 0.1]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_values_for_hard_and_soft_labels(logits, smoothing):
    one_hot = [[float(c == label) for c in range(3)] for label in HARD]
    for label, targets in ((torch.tensor(HARD), one_hot), (torch.tensor(SOFT), SOFT)):
        smooth = [[(1 - smoothing) * t + smoothing / 3 for t in row] for row in targets]
        found = loss_of(logits, label, label_smoothing=smoothing)
        assert found.shape == (4,)
        torch.testing.assert_close(found, by_hand(logits, smooth), rtol=0, atol=1e-6 if label.ndim == 2 else 1e-12)


def test_soft_labels_in_float64_are_exact(logits):
    label = torch.tensor(SOFT, dtype=torch.float64)
    torch.testing.assert_close(loss_of(logits, label), by_hand(logits, SOFT), rtol=0, atol=1e-12)
    assert torch.equal(loss_of(logits, torch.eye(3, dtype=torch.float64)[HARD]), loss_of(logits, torch.tensor(HARD)))


def test_gradient_is_probability_minus_target(logits):
    logits.requires_grad_()
    loss_of(logits, torch.tensor(HARD), label_smoothing=0.3).sum().backward()
    target = 0.7 * torch.eye(3, dtype=torch.float64)[HARD] + 0.1
    shares = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
    torch.testing.assert_close(logits.grad, shares - target, rtol=0, atol=1e-12)


def test_a_constant_added_to_all_logits_changes_nothing(logits):
    label = torch.tensor(HARD)
    torch.testing.assert_close(loss_of(logits + 7, label), loss_of(logits, label), rtol=0, atol=1e-12)


def test_at_least_float32_and_finite_at_the_edge():
    low = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.bfloat16)
    found = loss_of(low, torch.tensor([1]))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(float(low[0, 0] - low[0, 1]))
    assert loss_of(torch.zeros(1, 1), torch.tensor([0])).item() == 0.0, "one class has nothing to learn"


def test_refusals(logits):
    for wrong in (-0.1, 1.0):
        with pytest.raises(
            ValueError, match=f"label_smoothing={wrong} is out of range; allowed: 0 <= label_smoothing < 1"
        ):
            CrossEntropy(label_smoothing=wrong)
    batch = Batch(torch.zeros(1, 3, 1, 1), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="this needs logits, and the head gives none; choose a classifying head"):
        CrossEntropy()({"main": Output(features=torch.zeros(1, 2))}, batch, None)
