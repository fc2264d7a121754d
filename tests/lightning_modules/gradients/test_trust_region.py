"""A correction within its bound: closed forms, and what must leave the direct gradient as it is."""

import pytest
import torch
from torch import nn

from lightning_modules.gradients.trust_region import add_correction


def weights(*gradients):
    found = []
    for gradient in gradients:
        found.append(nn.Parameter(torch.zeros(2)))
        found[-1].grad = None if gradient is None else torch.tensor(gradient)
    return found


def added(direct, correction, max_ratio):
    """Gradients afterwards, and what is told: ratio, scaled down, finite."""
    moved = weights(*direct)
    told = add_correction(moved, [torch.tensor(part) for part in correction], max_ratio).tolist()
    return [None if p.grad is None else p.grad.tolist() for p in moved], told


DIRECT = [[3.0, 0.0], [0.0, 4.0]]  # of length 5, over both


@pytest.mark.parametrize(
    ("correction", "max_ratio", "expected", "told"),
    [
        ([[0.0, 6.0], [8.0, 0.0]], None, [[3.0, 6.0], [8.0, 4.0]], [2.0, 0.0, 1.0]),
        ([[0.0, 6.0], [8.0, 0.0]], 2.0, [[3.0, 6.0], [8.0, 4.0]], [2.0, 0.0, 1.0]),
        ([[0.0, 6.0], [8.0, 0.0]], 0.5, [[3.0, 1.5], [2.0, 4.0]], [0.5, 1.0, 1.0]),
        ([[0.0, 0.0], [0.0, 0.0]], 0.5, DIRECT, [0.0, 0.0, 1.0]),
        ([[0.0, torch.nan], [8.0, 0.0]], 0.5, DIRECT, [0.0, 0.0, 0.0]),
        ([[0.0, torch.inf], [8.0, 0.0]], None, DIRECT, [0.0, 0.0, 0.0]),
    ],
)
def test_closed_forms(correction, max_ratio, expected, told):
    assert added(DIRECT, correction, max_ratio) == (expected, told)


def test_numbers_whose_squares_are_infinite():
    found, told = added([[1.0, 0.0]], [[0.0, 1e30]], 0.5)
    assert found == [[1.0, pytest.approx(0.5)]] and told == [pytest.approx(0.5), 1.0, 1.0]


def test_without_a_direct_gradient():
    """Of length 0 leaves no room; a weight that only the correction reaches gets it, what nothing reaches nothing."""
    assert added([[0.0, 0.0]], [[1.0, 0.0]], 1.0) == ([[0.0, 0.0]], [0.0, 1.0, 1.0])
    assert added([[1.0, 0.0], None, None], [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], 1.0)[0] == [[1, 0], [0, 1], None]
    assert added([None], [[1.0, 0.0]], 1.0) == ([None], [0.0, 1.0, 1.0])
