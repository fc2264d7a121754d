"""InfoNCE against plain loops over pairs, its gradient in closed form and the limits of its temperature."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from kernels.info_nce import info_nce_loss, nt_xent_loss

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 3])  # 2 and 3 are alone
FRACTION = pytest.mark.parametrize("fraction", [1.0, 0.5, 0.01])


def points(count=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def by_loops(x, labels, t, fraction):
    u, losses = [row / row.norm() for row in x], []
    for i, own in enumerate(labels):
        positives = [u[i] @ u[j] / t for j in range(len(x)) if j != i and labels[j] == own]
        negatives = sorted(
            (u[i] @ u[j] / t for j in range(len(x)) if labels[j] != own), key=torch.Tensor.item, reverse=True
        )
        negatives = negatives[: max(1, round(fraction * len(negatives)))]
        costs = [torch.log1p(sum(torch.exp(n - p) for n in negatives)) for p in positives]
        losses.append(sum(costs) / len(costs) if costs else x.sum() * 0)
    return torch.stack(losses)


@FRACTION
@pytest.mark.parametrize("t", [0.07, 1.0])
def test_value_and_gradient_are_those_of_the_loops(t, fraction):
    x = points()
    found_B = info_nce_loss(x, LABELS, temperature=t, hard_fraction=fraction)
    expected_B = by_loops(x, LABELS, t, fraction)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-11, atol=1e-13)
    found, plain = (torch.autograd.grad(value.sum(), x)[0] for value in (found_B, expected_B))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_two_views_are_the_softmax_over_all_others(t):
    x = points(8)
    u = normalize(x)
    logits = (u @ u.T / t).fill_diagonal_(-torch.inf)
    partner = torch.arange(8).roll(4)
    expected = torch.nn.functional.cross_entropy(logits, partner, reduction="none").view(2, 4).mean(0)
    torch.testing.assert_close(nt_xent_loss(x[:4], x[4:], temperature=t), expected)
    torch.testing.assert_close(nt_xent_loss(x[4:], x[:4], temperature=t), expected)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(nt_xent_loss(x[:4][order], x[4:][order], temperature=t), expected[order])


def pair(t, count=6):
    """An anchor with one positive and ``count`` negatives, and the loss as a function of chosen similarities."""
    generator = torch.Generator().manual_seed(1)
    s = torch.rand(count + 1, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    axis = torch.eye(2 * count + 4, dtype=torch.float64)
    s = s.requires_grad_()
    rows = [s[k] * axis[0] + (1 - s[k] ** 2).sqrt() * axis[k + 1] for k in range(count + 1)]
    labels = torch.tensor([0, 0, *range(1, count + 1)])
    columns = torch.stack([axis[0], *rows])
    return s, info_nce_loss(axis[:1], labels[:1], temperature=t, columns=columns, column_labels=labels)[0]


@pytest.mark.parametrize("t", [0.1, 0.5, 2.0])
def test_gradient_in_the_similarities_and_its_balance(t):
    s, loss = pair(t)
    (gradient,) = torch.autograd.grad(loss, s)
    probability = (s.detach() / t).softmax(0)
    expected = (probability - torch.eye(7, dtype=torch.float64)[0]) / t
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert abs(float(gradient.sum())) < 1e-12


def test_negatives_weigh_more_evenly_as_the_temperature_rises():
    entropies = []
    for t in (0.05, 0.1, 0.3, 1.0, 5.0):
        s, loss = pair(t)
        share = torch.autograd.grad(loss, s)[0][1:]
        share = share / share.sum()
        entropies.append(-float((share * share.log()).sum()))
    assert entropies == sorted(entropies) and len(set(entropies)) == 5 and entropies[-1] < math.log(6)


def test_limits_of_the_temperature():
    s, cold = pair(1e-4)
    torch.testing.assert_close(1e-4 * cold, (s[1:].max() - s[0]).clamp_min(0), rtol=0, atol=1e-3)
    s, hot = pair(1e5)
    expected = s.mean() - s[0]  # over positive and negatives, the denominator has both
    torch.testing.assert_close(1e5 * (hot - math.log(7)), expected, rtol=1e-3, atol=1e-4)


@FRACTION
def test_a_slice_with_gathered_columns_is_the_rows_of_the_whole(fraction):
    x = points()
    whole_B = info_nce_loss(x, LABELS, hard_fraction=fraction)
    parts = [
        info_nce_loss(x[a:b], LABELS[a:b], hard_fraction=fraction, columns=x, column_labels=LABELS, first_own=a)
        for a, b in ((0, 3), (3, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole_B)


@FRACTION
def test_scale_invariance_and_orthogonal_gradient(fraction):
    x = points()
    loss_B = info_nce_loss(x, LABELS, hard_fraction=fraction)
    factors = torch.linspace(0.1, 9, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce_loss(factors * x, LABELS, hard_fraction=fraction), loss_B)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert float((gradient * x.detach()).sum(1).abs().max()) < 1e-11 and float(gradient.norm()) > 0.1


def test_fewer_negatives_cost_less_and_the_hardest_cost_most():
    x = points()
    losses = torch.stack([info_nce_loss(x, LABELS, hard_fraction=f) for f in (0.01, 0.5, 1.0)])
    assert bool((losses[:, [0, 1, 3, 4, 5]].diff(dim=0) > 0).all())


@FRACTION
@pytest.mark.parametrize("t", [0.01, 0.5])
@pytest.mark.parametrize("case", ["alone", "classes of one", "one class", "duplicates", "zeros"])
def test_degenerate_batches_are_finite_with_their_gradient(fraction, t, case):
    x = points(4, torch.float32).detach()
    x = {"alone": x[:1], "duplicates": x[:1].repeat(4, 1), "zeros": 0 * x}.get(case, x).requires_grad_()
    labels = {"classes of one": [0, 1, 2, 3], "alone": [0], "one class": [0] * 4}.get(case, [0, 0, 1, 1])
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = info_nce_loss(x, torch.tensor(labels), temperature=t, hard_fraction=fraction)
        (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert bool(gradient.isfinite().all())
    if case in ("duplicates", "zeros"):
        assert (
            float(loss_B.detach().min()) > 0.69 and float(loss_B.detach().max()) < 1.11
        )  # log 2 to log 3: equal ones stay together
    else:
        assert float(loss_B.detach().abs().max()) == 0.0 and float(gradient.abs().max()) == 0.0


@FRACTION
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(fraction, dtype):
    x = points(dtype=dtype)
    with torch.autocast("cpu", dtype):
        loss_B = info_nce_loss(x, LABELS, temperature=0.01, hard_fraction=fraction)
    assert loss_B.dtype == torch.float32
    plain_B = info_nce_loss(x.float(), LABELS, temperature=0.01, hard_fraction=fraction)
    torch.testing.assert_close(loss_B, plain_B, rtol=1e-5, atol=1e-5)
    loss_B.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_errors():
    x = points()
    for wrong in ({"temperature": 0.0}, {"hard_fraction": 0.0}, {"hard_fraction": 1.5}):
        with pytest.raises(ValueError, match="the first must be positive, the second in"):
            info_nce_loss(x, LABELS, **wrong)
    with pytest.raises(ValueError, match="they must be the same samples"):
        nt_xent_loss(x[:3], x[3:])
    with pytest.raises(ValueError, match="columns and column_labels belong together"):
        info_nce_loss(x, LABELS, columns=x)
    with pytest.raises(ValueError, match="pairs need one integer class a sample"):
        info_nce_loss(x, LABELS.double())
