"""The trajectory divergence against the official implementation's arrays, closed forms and plain loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.trajectory import trajectory_kl

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "saf" / "trajectory_loss.npz", allow_pickle=False)
CASES = [(case, tau) for case in ("small", "c10", "c100", "n1", "c1000") for tau in ("0.5", "1", "2", "5", "10")]


def tensor(key: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(REFERENCE[key]))


@pytest.mark.parametrize(("case", "tau"), CASES)
def test_equals_official_values_and_gradients(case, tau):
    current, past = tensor(f"{case}/current").requires_grad_(), tensor(f"{case}/past").requires_grad_()
    kl = trajectory_kl(current, past, float(tau))
    kl.mean().backward()
    torch.testing.assert_close(kl.detach(), tensor(f"{case}/tau={tau}/per_sample"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(kl.mean().detach(), tensor(f"{case}/tau={tau}/kl_tau2"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(current.grad, tensor(f"{case}/tau={tau}/grad_current"), rtol=1e-8, atol=1e-10)
    assert past.grad is None


def test_extreme_logits_are_finite_where_softmax_then_log_is_not():
    value = trajectory_kl(tensor("extreme/current"), tensor("extreme/past"), 1.0).mean()
    torch.testing.assert_close(value, tensor("extreme/stable_value_tau=1"), rtol=1e-9, atol=0)


def test_equals_plain_loops():
    generator = torch.Generator().manual_seed(0)
    z, p = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for b in range(3):
        soft = [[math.exp(v / 2.0) for v in row[b].tolist()] for row in (p, z)]
        past, now = ([v / sum(row) for v in row] for row in soft)
        expected = 4.0 * sum(a * (math.log(a) - math.log(c)) for a, c in zip(past, now, strict=True))
        assert trajectory_kl(z, p, 2.0)[b].item() == pytest.approx(expected, rel=1e-12)


def test_zero_and_shift_invariant():
    z = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(5, 1, dtype=torch.float64)
    kl = trajectory_kl(z, z.detach() + shift, 3.0)
    kl.sum().backward()
    assert kl.abs().max() < 1e-12 and z.grad.abs().max() < 1e-12
    past = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(trajectory_kl(z, past, 3.0), trajectory_kl(z + shift, past - shift, 3.0))


def test_gradient_is_tau_times_difference_and_rows_sum_to_zero():
    z, past = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5, dtype=torch.float64)
    trajectory_kl(z, past, 5.0).mean().backward()
    expected = 5.0 * ((z / 5).softmax(1) - (past / 5).softmax(1)) / 6
    torch.testing.assert_close(z.grad, expected.detach())
    assert z.grad.sum(1).abs().max() < 1e-12


def test_large_temperature_is_half_the_centred_mean_square():
    z, past = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    difference = z - past
    centred = difference - difference.mean(1, keepdim=True)
    torch.testing.assert_close(trajectory_kl(z, past, 1e4), centred.square().sum(1) / 12, rtol=1e-3, atol=0)


def test_uniform_past_and_direction():
    z = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    uniform = trajectory_kl(z, torch.zeros_like(z), 1.0)
    expected = -math.log(3) - z.log_softmax(1).mean()
    torch.testing.assert_close(uniform, expected[None])
    assert not torch.allclose(uniform, trajectory_kl(torch.zeros_like(z), z, 1.0))


def test_scale_and_half_precision():
    z, past = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(trajectory_kl(z, past, 5.0), 25 * trajectory_kl(z, past, 5.0, scale=False))
    half = trajectory_kl(z.half() * 1e4, past.half() * 1e4, 1.0)
    assert half.dtype == torch.float32 and bool(half.isfinite().all())
    assert trajectory_kl(z.double(), past.half(), 1.0).dtype == torch.float64


def test_bad_input():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        trajectory_kl(torch.zeros(1, 2), torch.zeros(1, 2), 0.0)
    with pytest.raises(ValueError, match=r"same shape \[B, C\], got \(1, 2\) and \(2, 2\)"):
        trajectory_kl(torch.zeros(1, 2), torch.zeros(2, 2), 1.0)
