"""DIST beyond what all distillation of logits shares: correlations, and rows or columns without spread."""

import pytest
import torch

from kernels.dist import dist_loss


def draw(rows, classes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), v, torch.randint(classes, (rows,), generator=generator)


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z)[0]


def test_dist_is_of_the_correlation_alone():
    """By probabilities: an increasing affine map of a row leaves inter, of a column intra."""
    z, v, _ = draw(6, 4, 9)
    p = v.softmax(1)
    rows = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)[:, None]
    for temperature in (1.0, 3.0):
        mixed = (temperature * (rows * p + (1 - rows) / 4).log()).requires_grad_()
        teacher = temperature * p.log()
        assert dist_loss(mixed, teacher, temperature=temperature, gamma=0).abs() < 1e-5
        assert dist_loss(mixed, teacher, temperature=temperature, beta=0) > 1e-3
        columns = 0.3 * p + torch.tensor([0.1, 0.2, 0.3, 0.1], dtype=torch.float64)  # rows sum to 1 again
        mixed = temperature * columns.log()
        assert dist_loss(mixed, teacher, temperature=temperature, beta=0).abs() < 1e-5
        assert dist_loss(mixed, teacher, temperature=temperature, gamma=0) > 1e-3
    opposite = 0.5 - p / 2
    opposite = (opposite / opposite.sum(1, keepdim=True)).log()
    assert dist_loss(opposite, p.log(), temperature=1.0).item() == pytest.approx(4, rel=1e-5), "the largest value"


def test_dist_without_spread():
    """A row or a column that is constant correlates with nothing, in any precision, and pulls at nothing."""
    _, v, _ = draw(4, 7, 10)
    for dtype in (torch.float32, torch.float64):
        z = torch.full((4, 7), 0.1, dtype=dtype, requires_grad=True)
        loss = dist_loss(z, v.to(dtype), temperature=3.0)
        assert loss.item() == pytest.approx(9 * 2) and not gradient(loss, z).any()
    z, v, _ = draw(1, 7, 11)
    assert dist_loss(z, v, temperature=1.0, beta=0).item() == 1, "one sample has constant columns"
    assert 0 < dist_loss(z, v, temperature=1.0, gamma=0) < 2
