"""Uniformity and tolerance against plain loops over pairs."""

import itertools
import math

import pytest
import torch

from kernels.embedding_statistics import tolerance, uniformity

LABELS = torch.tensor([0, 1, 0, 1, 2, 0])


def points(dtype=torch.float64):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_both_are_those_of_the_loops(t):
    x = points()
    u = [row / row.norm() for row in x]
    pairs = list(itertools.combinations(range(6), 2))
    spread = [math.exp(-t * float((u[i] - u[j]).square().sum())) for i, j in pairs]
    assert float(uniformity(x, t)) == pytest.approx(math.log(sum(spread) / len(pairs)), rel=1e-12)
    near = [float(u[i] @ u[j]) for i, j in pairs if LABELS[i] == LABELS[j]]
    assert float(tolerance(x, LABELS)) == pytest.approx(sum(near) / len(near), rel=1e-12)


def test_extremes():
    same, opposite = torch.ones(5, 3), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    torch.testing.assert_close(uniformity(same), torch.tensor(0.0))
    torch.testing.assert_close(uniformity(opposite, 3.0), torch.tensor(-12.0))
    torch.testing.assert_close(tolerance(same, torch.zeros(5, dtype=torch.long)), torch.tensor(1.0))
    torch.testing.assert_close(tolerance(opposite, torch.tensor([4, 4])), torch.tensor(-1.0))


def test_invariances():
    x, factors = points(), torch.linspace(0.1, 9, 6, dtype=torch.float64)[:, None]
    rotation, _ = torch.linalg.qr(points()[:4])
    torch.testing.assert_close(uniformity(factors * x @ rotation), uniformity(x))
    torch.testing.assert_close(tolerance(factors * x @ rotation, LABELS), tolerance(x, LABELS))


def test_gradient_of_uniformity_spreads_the_points():
    x = points().requires_grad_()
    assert torch.autograd.gradcheck(uniformity, (x,))
    (gradient,) = torch.autograd.grad(uniformity(x), x)
    assert bool(uniformity(x - 0.1 * gradient) < uniformity(x))
    assert float((gradient * x.detach()).sum(1).abs().max()) < 1e-14


def test_nothing_to_measure_is_nan():
    assert uniformity(points()[:1]).isnan() and uniformity(points()[:0]).isnan()
    assert tolerance(points(), torch.arange(6)).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    x = points(dtype)
    with torch.autocast("cpu", dtype):
        found = uniformity(x), tolerance(x, LABELS)
    torch.testing.assert_close(found, (uniformity(x.float()), tolerance(x.float(), LABELS)), rtol=1e-6, atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="t must be positive, got 0"):
        uniformity(points(), 0)
