"""BinaryKL beyond what all distillation of logits shares: classes apart, and the log cosh of its normed form."""

import math

import pytest
import torch

from kernels.binary_kl import binary_kl, log_cosh


def draw(rows, classes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), v, torch.randint(classes, (rows,), generator=generator)


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z)[0]


def test_log_cosh_is_exact_near_zero_and_far_away():
    u = torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 0.5, 1.0, 1.5, 30.0, 1e6], dtype=torch.float64).requires_grad_()
    exact = [0.0, 5e-25, 5e-13 - 1e-24 / 12, *(math.log(math.cosh(x)) for x in (1e-3, 0.5, 1.0, 1.5, 30.0))]
    assert log_cosh(u).tolist() == pytest.approx([*exact, 1e6 - math.log(2)], rel=1e-9, abs=0)
    torch.testing.assert_close(gradient(log_cosh(u), u), u.detach().tanh(), rtol=1e-12, atol=0)
    single = u.detach().float().requires_grad_()
    torch.testing.assert_close(gradient(log_cosh(single), single), single.detach().tanh(), rtol=1e-6, atol=0)
    torch.testing.assert_close(log_cosh(-u), log_cosh(u), rtol=0, atol=0)
    assert torch.autograd.gradcheck(log_cosh, (u.detach()[4:8].clone().requires_grad_(),))
    a, b = torch.linspace(-4, 4, 50, dtype=torch.float64), torch.linspace(3, -2, 50, dtype=torch.float64)
    assert (log_cosh((a + b) / 2) <= (log_cosh(a) + log_cosh(b)) / 2).all(), "convex"


def test_a_class_does_not_see_the_others():
    z, v, _ = draw(4, 5, 7)
    first = gradient(binary_kl(z, v, temperature=2.0), z)
    changed = torch.cat([z[:, :2], -z[:, 2:]], 1)
    second = gradient(binary_kl(changed, v, temperature=2.0), z)
    torch.testing.assert_close(first[:, :2], second[:, :2], rtol=0, atol=0)
