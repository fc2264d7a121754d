"""Comp-sum losses: the definition by sums, named members, limits in exact arithmetic, the gradient identity, bounds."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch.nn.functional import cross_entropy

from kernels.comp_sum import comp_sum, generalized_cross_entropy, margin_shift

TAUS = [0.0, 0.5, 1.0, 1.3, 1.7, 2.0, 3.0]
Y = torch.tensor([0, 3, 2, 1])


def logits(seed=0, rows=4, scale=2.0):
    return scale * torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rho", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("tau", TAUS)
def test_is_the_definition(tau, rho):
    z = logits()
    expected = []
    for row, y in zip(z.tolist(), Y.tolist(), strict=True):
        u = sum(math.exp((row[j] - row[y]) / rho) for j in range(4) if j != y)
        expected.append(math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau))
    assert comp_sum(z, Y, tau=tau, rho=rho).tolist() == pytest.approx(expected, rel=1e-10)


def test_named_members():
    z = logits()
    p = z.exp().gather(1, Y[:, None])[:, 0] / z.exp().sum(1)
    torch.testing.assert_close(comp_sum(z, Y, tau=1.0), cross_entropy(z, Y, reduction="none"), rtol=0, atol=1e-14)
    torch.testing.assert_close(comp_sum(z, Y, tau=2.0), 1 - p, rtol=0, atol=1e-14)
    torch.testing.assert_close(comp_sum(z, Y, tau=0.0), 1 / p - 1, rtol=1e-12, atol=0)
    torch.testing.assert_close(comp_sum(z, Y, tau=1.7), (1 - p**0.7) / 0.7, rtol=1e-12, atol=0)
    for q in (0.0, 0.3, 0.7, 1.0):
        found = generalized_cross_entropy(z, Y, q=q)
        torch.testing.assert_close(found, comp_sum(z, Y, tau=1 + q), rtol=1e-12, atol=1e-14)
    absolute = (z.softmax(1) - torch.eye(4, dtype=torch.float64)[Y]).abs().sum(1)
    torch.testing.assert_close(generalized_cross_entropy(z, Y, q=1.0), absolute / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rho", [1.0, 0.5])
@pytest.mark.parametrize("tau", TAUS)
def test_gradient_identity(tau, rho):
    z = logits().requires_grad_()
    comp_sum(z, Y, tau=tau, rho=rho).sum().backward()
    p = (z.detach() / rho).softmax(1)
    own = p.gather(1, Y[:, None])
    expected = own ** (tau - 1) * (p - torch.eye(4, dtype=torch.float64)[Y]) / rho
    torch.testing.assert_close(z.grad, expected, rtol=1e-10, atol=1e-14)


def exactly(z_y, z_other, power):
    """Loss and its derivative by z_y of two classes, exactly, with power = tau - 1."""
    getcontext().prec = 60 if power == 0 or abs(power) > 1e-20 else 400  # digits
    power, log_p = Decimal(power), -(1 + (Decimal(z_other) - Decimal(z_y)).exp()).ln()
    loss = -log_p if power == 0 else (1 - (power * log_p).exp()) / power
    return float(loss), float((power * log_p).exp() * (log_p.exp() - 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-31, 1e-16, 1e-14, 1e-9, 1e-7, 1e-5, 1e-4, 1e-2, 0.5, 1.0])
def test_exact_to_rounding_around_cross_entropy(size, dtype):
    """Value and gradient; a switch to cross-entropy at 1e-4 would be off by 1e-3 at a loss of 20."""
    close = 1e-12 if dtype == torch.float64 else 1e-5
    for other in (-3.0, 0.0, 2.0, 20.0):
        z = torch.tensor([[0.0, other]], dtype=dtype, requires_grad=True)
        y = torch.tensor([0])
        for found, power in [
            (generalized_cross_entropy(z, y, q=size), size),
            (comp_sum(z, y, tau=1 + size), (1 + size) - 1),
            (comp_sum(z, y, tau=1 - size), (1 - size) - 1),
        ]:
            (grad,) = torch.autograd.grad(found.sum(), z)
            value, slope = exactly(0.0, other, power)
            assert found.item() == pytest.approx(value, rel=close)
            assert grad[0].tolist() == pytest.approx([slope, -slope], rel=close)


def test_a_small_confidence_keeps_its_gradient_in_float32():
    """``1 - p^q`` rounds ``p^q`` away; its derivative must not."""
    z = torch.tensor([[0.0, 30.0]], requires_grad=True)
    generalized_cross_entropy(z, torch.tensor([0]), q=0.7).sum().backward()
    assert z.grad[0, 0].item() == pytest.approx(exactly(0.0, 30.0, 0.7)[1], rel=1e-5)


def test_decreasing_in_tau_and_with_the_confidence():
    z = logits()
    values = torch.stack([comp_sum(z, Y, tau=tau) for tau in TAUS])
    assert (values.diff(dim=0) < 0).all()
    better = z + torch.eye(4, dtype=torch.float64)[Y]
    assert all((comp_sum(better, Y, tau=tau) < comp_sum(z, Y, tau=tau)).all() for tau in TAUS)
    for tau in TAUS:
        torch.testing.assert_close(comp_sum(z + 9, Y, tau=tau), comp_sum(z, Y, tau=tau), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", TAUS)
def test_soft_labels_average_the_losses_of_the_classes(tau):
    z = logits()
    soft = logits(5).softmax(1)
    expected = sum(soft[:, k] * comp_sum(z, torch.full((4,), k), tau=tau) for k in range(4))
    torch.testing.assert_close(comp_sum(z, soft, tau=tau), expected, rtol=1e-12, atol=0)
    hard = torch.eye(4, dtype=torch.float64)[Y]
    torch.testing.assert_close(comp_sum(z, hard, tau=tau), comp_sum(z, Y, tau=tau), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tau", TAUS)
def test_finite_at_extreme_logits(tau, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 1e4, 0.0], [0.0] * 4], dtype=dtype, requires_grad=True)
    for label in (torch.zeros(3, dtype=torch.int64), torch.full((3, 4), 0.25), torch.eye(4)[:3]):
        found = comp_sum(z, label, tau=tau)
        (grad,) = torch.autograd.grad(found.sum(), z)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        assert found.isfinite().all() and grad.isfinite().all()


def test_beyond_the_largest_exponent_the_loss_stays():
    z = torch.tensor([[0.0, 99.0], [0.0, 101.0], [0.0, 200.0]], requires_grad=True)
    found = comp_sum(z, torch.zeros(3, dtype=torch.int64), tau=0.5)
    found.sum().backward()
    top = math.expm1(50) / 0.5
    assert found.tolist() == pytest.approx([math.expm1(49.5) / 0.5, top, top], rel=1e-5)
    assert z.grad[0, 1] > 0 and torch.equal(z.grad[1:], torch.zeros(2, 2))


def by_loops(clean, adversarial, label):
    """``||D' - D||`` from the margins themselves."""
    values = []
    for a, b, y in zip(clean.tolist(), adversarial.tolist(), label.tolist(), strict=True):
        values.append(math.sqrt(sum(((b[y] - b[j]) - (a[y] - a[j])) ** 2 for j in range(len(a)) if j != y)))
    return torch.tensor(values, dtype=torch.float64)


def test_margin_shift_is_the_distance_of_the_margins():
    z, w = logits(0).requires_grad_(), logits(1).requires_grad_()
    found = margin_shift(z, w, Y)
    torch.testing.assert_close(found, by_loops(z, w, Y), rtol=1e-12, atol=0)
    torch.testing.assert_close(margin_shift(w, z, Y), found, rtol=1e-12, atol=0)
    torch.testing.assert_close(margin_shift(z + 4, w - 2, Y), found, rtol=1e-12, atol=0)
    soft = logits(5).softmax(1)
    mean = sum(soft[:, k] * by_loops(z, w, torch.full((4,), k)) for k in range(4))
    torch.testing.assert_close(margin_shift(z, w, soft), mean, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda a, b: margin_shift(a, b, Y), (z, w))


def test_margin_shift_of_equal_logits_is_zero_with_a_gradient_of_zero():
    z = logits().requires_grad_()
    w = z.detach().clone().requires_grad_()
    found = margin_shift(z, w, Y)
    found.sum().backward()
    assert torch.equal(found, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(z.grad, torch.zeros_like(z)) and torch.equal(w.grad, torch.zeros_like(w))
    far = torch.tensor([[1e4, -1e4, 0.0, 0.0]], requires_grad=True)
    value = margin_shift(far, -far.detach(), torch.tensor([0]))
    value.sum().backward()
    assert value.item() == pytest.approx(2e4 * math.sqrt(2**2 + 1 + 1), rel=1e-6) and far.grad.isfinite().all()


@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5, 2.0])
def test_the_smooth_loss_bounds_the_adversarial_margin_loss(tau, rho):
    """With ``nu >= sqrt(C - 1) / rho``: ``Phi_tau`` of the rho-margin losses at the attacked image is below."""
    z, w = logits(0, rows=200, scale=1.5), logits(1, rows=200, scale=1.5)
    y = torch.arange(200) % 4
    smooth = comp_sum(z, y, tau=tau, rho=rho) + math.sqrt(3) / rho * margin_shift(z, w, y)
    for b in range(200):
        row, label = w[b].tolist(), int(y[b])
        u = sum(min(max(0.0, 1 - (row[label] - row[j]) / rho), 1.0) for j in range(4) if j != label)
        bound = math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        assert smooth[b].item() >= bound - 1e-12


def test_no_sample_at_all():
    z, y = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for value in (comp_sum(z, y, tau=0.5), generalized_cross_entropy(z, y, q=0.7), margin_shift(z, z, y)):
        assert value.shape == (0,)
        value.sum().backward()


def test_refusals():
    z, y = torch.zeros(2, 3), torch.tensor([0, 1])
    for tau in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"tau must be a number from 0 on, got {tau}"):
            comp_sum(z, y, tau=tau)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"q must be a number from 0 to 1, got {q}"):
            generalized_cross_entropy(z, y, q=q)
    for rho in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"rho must be a positive number, got {rho}"):
            comp_sum(z, y, tau=1.0, rho=rho)
    with pytest.raises(ValueError, match=r"labels of shape \[2, 2\] for logits of shape \[2, 3\]; give \[B\] classes"):
        comp_sum(z, torch.zeros(2, 2), tau=1.0)
    with pytest.raises(ValueError, match="one integer class a row is needed"):
        comp_sum(z, torch.tensor([0.0, 1.0]), tau=1.0)
    with pytest.raises(ValueError, match=r"must have one shape \[B, C\], got \[2, 3\] and \[1, 3\]"):
        margin_shift(z, z[:1], y)
