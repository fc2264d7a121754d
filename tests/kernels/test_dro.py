"""KL-DRO weights against extended-precision arrays, the dual problem, limits in the radius, and plain loops."""

import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.dro import (
    compositional_coefficients,
    effective_sample_size,
    kl_dro_objective,
    kl_dro_weights,
    radius_of,
)

ARRAYS = np.load(Path(__file__).parents[1] / "reference" / "doubly_robust_at" / "weights.npz", allow_pickle=False)
CASES = sorted({tuple(key.split("/")[:2]) for key in ARRAYS.files if "/r=" in key})
RADII = [10.0**power for power in range(-2, 5)]


def array(key):
    return torch.from_numpy(np.asarray(ARRAYS[key]))


def some_losses(count=12, scale=1.0, seed=0):
    return scale * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).exp()


def divergence(weights):
    """sum w log(M w), 0 log 0 = 0."""
    return torch.special.xlogy(weights, len(weights) * weights).sum()


def test_every_array_is_looked_at():
    assert len(CASES) == 77 and {case for case, _ in CASES} == {"exp8", "ties", "const", "heavy", "huge", "one", "neg"}
    assert len(ARRAYS.files) == 7 + 5 * len(CASES)


@pytest.mark.parametrize(("case", "radius"), CASES, ids=["-".join(case) for case in CASES])
def test_equals_the_reference(case, radius):
    losses, r = array(f"{case}/loss").requires_grad_(), float(radius.removeprefix("r="))
    weights, objective = kl_dro_weights(losses, r), kl_dro_objective(losses, r)
    torch.testing.assert_close(weights, array(f"{case}/{radius}/w"), rtol=1e-11, atol=1e-14)
    digits = 1e-13 if r < 1e8 else 5e-12  # the arrays' own; see the test with fifty digits
    torch.testing.assert_close(objective.detach(), array(f"{case}/{radius}/objective"), rtol=digits, atol=digits)
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close((weights * losses).sum().detach(), array(f"{case}/{radius}/weighted_loss"), **close)
    share = effective_sample_size(weights)
    torch.testing.assert_close(share * len(losses), array(f"{case}/{radius}/ess"), **close)
    torch.testing.assert_close(divergence(weights), array(f"{case}/{radius}/kl_to_uniform"), **close)
    dual = (weights * losses).sum() - r * divergence(weights)
    torch.testing.assert_close(dual.detach(), objective.detach(), rtol=1e-9, atol=r * 1e-15)  # duality
    objective.backward()
    torch.testing.assert_close(losses.grad, weights, rtol=1e-10, atol=1e-14)  # the gradient is the weights
    coefficients, tracker = compositional_coefficients(losses.detach(), None, r, 0.3)
    torch.testing.assert_close(coefficients, weights, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(r * tracker, objective.detach(), rtol=1e-9, atol=r * 1e-15)


@pytest.mark.parametrize("radius", ["0.05", "1", "3", "900", "1100", "1e8", "1e12"])
@pytest.mark.parametrize("case", ["exp8", "ties", "huge", "neg"])
def test_the_objective_to_fifty_digits(case, radius):
    """Both forms, and where one takes over from the other."""
    losses = array(f"{case}/loss")
    with localcontext(prec=50, Emax=10**9, Emin=-(10**9)):
        exact, r = [Decimal(loss) for loss in losses.tolist()], Decimal(radius)
        expected = r * (sum((loss / r).exp() for loss in exact) / len(exact)).ln()
    assert kl_dro_objective(losses, float(radius)).item() == pytest.approx(float(expected), rel=1e-14, abs=1e-15)


def test_no_other_weights_do_better():
    """Of a thousand points of the simplex none has a larger dual value; the weights themselves attain the objective."""
    losses, r = some_losses(), 0.7
    best = kl_dro_objective(losses, r)
    exponential = torch.rand(1000, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log().neg()
    for share in (1.0, 0.03, 1e-3):  # mixtures with the weights come close
        w = (1 - share) * kl_dro_weights(losses, r) + share * exponential / exponential.sum(1, keepdim=True)
        values = w @ losses - r * torch.special.xlogy(w, 12 * w).sum(1)
        assert (values < best).all() and (share > 1e-3 or values.max() > best - 1e-5)


def test_large_radius_is_uniform_to_second_order():
    losses, mean = some_losses(), some_losses().mean()
    for r in (1e3, 1e5, 1e7):
        first = 1 / 12 + (losses - mean) / (12 * r)
        assert (kl_dro_weights(losses, r) - first).abs().max() < 10 / r**2 + 1e-16
        expected = mean + losses.var(correction=0) / (2 * r)
        assert abs(kl_dro_objective(losses, r) - expected) < 10 / r**2 + 1e-15


def test_small_radius_is_uniform_on_the_largest():
    losses = torch.tensor([0.5, 2.0, 1.0, 2.0, 1.999], dtype=torch.float64)
    torch.testing.assert_close(kl_dro_weights(losses, 1e-6), torch.tensor([0, 0.5, 0, 0.5, 0], dtype=torch.float64))
    assert kl_dro_objective(losses, 1e-6).item() == pytest.approx(2.0, abs=1e-5)
    assert kl_dro_objective(losses, 1e-300).item() == 2.0


@pytest.mark.parametrize("r", RADII)
def test_order_shift_scale_and_permutation(r):
    losses = some_losses()
    weights, value = kl_dro_weights(losses, r), kl_dro_objective(losses, r)
    assert weights.sum().item() == pytest.approx(1, abs=1e-14)
    assert (weights[losses.argsort()].diff() >= 0).all()
    torch.testing.assert_close(kl_dro_weights(losses + 3, r), weights, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(kl_dro_objective(losses + 3, r), value + 3, rtol=1e-13, atol=0)
    torch.testing.assert_close(kl_dro_objective(7 * losses, 7 * r), 7 * value, rtol=1e-13, atol=0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kl_dro_weights(losses[order], r), weights[order], rtol=1e-13, atol=0)
    first, tracker = compositional_coefficients(losses, 0.3, r, 0.2)
    second, same = compositional_coefficients(losses[order], 0.3, r, 0.2)
    torch.testing.assert_close(second, first[order], rtol=1e-12, atol=0)
    torch.testing.assert_close(same, tracker, rtol=1e-13, atol=0)


def test_between_mean_and_maximum_and_monotone_in_the_radius():
    losses = some_losses()
    weights = [kl_dro_weights(losses, r) for r in RADII]
    values = torch.stack([kl_dro_objective(losses, r) for r in RADII])
    assert losses.mean() < values.min() and values.max() < losses.max()
    assert (values.diff() < 0).all()
    assert (torch.stack([w @ losses for w in weights]).diff() < 0).all()
    assert (torch.stack([effective_sample_size(w) for w in weights]).diff() > 0).all()
    equal = torch.full((5,), 1.3, dtype=torch.float64)
    for r in RADII:
        torch.testing.assert_close(kl_dro_weights(equal, r), torch.full_like(equal, 0.2), rtol=1e-15, atol=0)
        assert kl_dro_objective(equal, r).item() == 1.3


def test_float32_is_computed_in_float64():
    losses = torch.tensor([1000.0, 999.0, 3.0])  # exp overflows float32
    for r in (0.1, 1.0, 1e6):
        exact = losses.double()
        assert torch.equal(kl_dro_weights(losses, r), kl_dro_weights(exact, r).float())
        assert torch.equal(kl_dro_objective(losses, r), kl_dro_objective(exact, r).float())
        found, tracker = compositional_coefficients(losses, 5.0, r, 0.1)
        expected, same = compositional_coefficients(exact, 5.0, r, 0.1)
        assert tracker.dtype == torch.float64 and torch.equal(tracker, same) and torch.equal(found, expected.float())
        assert found.isfinite().all() and found.dtype == effective_sample_size(found).dtype == torch.float32
    assert radius_of(losses, 0.5).dtype == torch.float64


def test_the_tracker_is_that_of_a_plain_loop():
    """The direct form, where nothing overflows."""
    r, eta, u, tracker = 0.8, 0.25, None, None
    for update in range(20):
        losses = some_losses(6, seed=update)
        mean = sum(math.exp(loss / r) for loss in losses.tolist()) / 6
        u = mean if u is None else (1 - eta) * u + eta * mean
        found, tracker = compositional_coefficients(losses, tracker, r, eta)
        expected = torch.tensor([math.exp(loss / r) / (6 * u) for loss in losses.tolist()], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        assert tracker.item() == pytest.approx(math.log(u), rel=1e-12)
        assert found.sum().item() == pytest.approx(mean / u, rel=1e-12)


def test_rate_one_is_the_batch_alone():
    for start in (None, 4.0, -math.inf):
        found, tracker = compositional_coefficients(some_losses(), start, 0.5, 1.0)
        torch.testing.assert_close(found, kl_dro_weights(some_losses(), 0.5), rtol=1e-12, atol=0)
        assert 0.5 * tracker.item() == pytest.approx(kl_dro_objective(some_losses(), 0.5).item(), rel=1e-13)


@pytest.mark.parametrize("start", [None, 30.0, -30.0, -math.inf])
def test_equal_losses_over_time_reach_the_weights_from_any_start(start):
    tracker = start
    for _ in range(400):
        found, tracker = compositional_coefficients(some_losses(), tracker, 1.0, 0.2)
    torch.testing.assert_close(found, kl_dro_weights(some_losses(), 1.0), rtol=1e-12, atol=0)


def test_a_start_with_zero_makes_the_first_coefficients_larger():
    first, _ = compositional_coefficients(some_losses(), None, 1.0, 0.1)
    zero, _ = compositional_coefficients(some_losses(), -math.inf, 1.0, 0.1)
    torch.testing.assert_close(zero, first / 0.1, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_never_enter_the_tracker(bad):
    losses = torch.tensor([1.0, bad, 2.0], dtype=torch.float64)
    found, tracker = compositional_coefficients(losses, 1.5, 1.0, 0.1)
    assert tracker.item() == 1.5 and not found[1].isfinite()
    torch.testing.assert_close(found[0].item(), math.exp(1 - 1.5) / 3)
    _, tracker = compositional_coefficients(losses, None, 1.0, 0.1)
    assert tracker.isnan(), "not started"
    for start in (None, tracker):
        _, after = compositional_coefficients(losses[:1], start, 1.0, 0.1)
        assert after.item() == pytest.approx(1.0, abs=1e-15)


def test_nothing_but_the_objective_carries_a_gradient():
    losses = some_losses().requires_grad_()
    assert not kl_dro_weights(losses, 1.0).requires_grad
    assert not any(x.requires_grad for x in compositional_coefficients(losses, None, 1.0, 0.1))
    (kl_dro_weights(losses, 1.0) * losses).sum().backward()  # level A
    ours, losses.grad = losses.grad, None
    kl_dro_objective(losses, 1.0).backward()
    torch.testing.assert_close(ours, losses.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("r", [0.3, 1.0, 2e4])  # both forms
def test_the_gradient_is_that_of_finite_differences(r):
    losses = some_losses(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_dro_objective(x, r), (losses,))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.9, 0.999999])
def test_the_radius_has_the_effective_sample_size(target, scale):
    losses = some_losses(40, scale)
    r = radius_of(losses, target)
    assert r.ndim == 0
    assert effective_sample_size(kl_dro_weights(losses, r)).item() == pytest.approx(target, abs=1e-10)
    torch.testing.assert_close(radius_of(losses + 5, target), r, rtol=1e-4, atol=0)


def test_the_radius_of_gaussian_losses_is_the_closed_form():
    """Mean over the distribution: ESS/B = exp(-(s/r)^2)."""
    normal = torch.erfinv(2 * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 1) * 2**0.5
    for share in (0.9, 0.5, 0.37):
        assert radius_of(3 * normal, share).item() == pytest.approx(3 / math.sqrt(-math.log(share)), rel=1e-3)


def test_the_radius_of_losses_that_decide_nothing():
    for losses in ([2.0, 2.0, 2.0], [3.2]):
        r = radius_of(torch.tensor(losses), 0.5)
        assert r.item() == 1.0 and torch.equal(
            kl_dro_weights(torch.tensor(losses), r), torch.full((len(losses),), 1 / len(losses))
        )
    ties = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    r = radius_of(ties, 0.3)  # two ties count for half of the samples at least
    assert 0 < r < 1e-6 and effective_sample_size(kl_dro_weights(ties, r)).item() == 0.5


def test_no_host_sync():
    """Nothing reads a value: fake tensors have none."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        losses = torch.zeros(6)
        r = radius_of(losses, 0.5)
        p, tracker = compositional_coefficients(losses, None, r, 0.1)
        p, tracker = compositional_coefficients(losses, tracker, r, 0.1)
        assert kl_dro_weights(losses, r).shape == p.shape == (6,)
        assert kl_dro_objective(losses, r).shape == effective_sample_size(p).shape == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kl_dro_weights(x, 0.0), "radius=0.0 is out of range; allowed: radius > 0"),
        (lambda x: kl_dro_objective(x, math.nan), "radius=nan is out of range"),
        (lambda x: kl_dro_weights(x[None], 1.0), r"losses must have the shape \[B\], .* these have \[1, 12\]"),
        (lambda x: kl_dro_objective(x[:0], 1.0), "the objective of no loss is not defined"),
        (lambda x: compositional_coefficients(x, None, 1.0, 0.0), "rate=0.0 is out of range; allowed: 0 < rate <= 1"),
        (lambda x: compositional_coefficients(x[:0], None, 1.0, 0.1), "a batch without a loss has no coefficients"),
        (lambda x: radius_of(x, 1.0), "target_ess=1.0 is out of range; allowed: 0 < target_ess < 1"),
        (lambda x: radius_of(x[:0], 0.5), "no radius belongs to no loss"),
    ],
)
def test_values_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call(some_losses())
