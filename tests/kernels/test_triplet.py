"""The triplet loss against plain loops over triplets, and its properties."""

import itertools
import math

import pytest
import torch

from kernels import triplet
from kernels.triplet import triplet_loss

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 1, 3, 0])  # 2 and 3 are alone
EVERY = pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
MARGIN = pytest.mark.parametrize("margin", [0.05, 0.6, None])
OVER = pytest.mark.parametrize("over", ["mean", "nonzero"])


def points(count=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def metric(x, distance):
    def measure(a, b):
        u, v = x[a] / x[a].norm(), x[b] / x[b].norm()
        return {"l2": (u - v).norm(), "squared_l2": (u - v).square().sum(), "cosine": 1 - u @ v}[distance]

    return measure


def triplets(d, labels, a, mining):
    """(distance to the positive, distance to the negative) of the triplets of anchor a."""
    others = [i for i in range(len(labels)) if i != a]
    near = [d(a, i) for i in others if labels[i] == labels[a]]
    far = [d(a, i) for i in others if labels[i] != labels[a]]
    if mining == "all":
        return list(itertools.product(near, far))
    if mining == "hard":
        return [(max(near), min(far))] if near and far else []
    farther = [(p, [n for n in far if n > p]) for p in near]
    return [(p, min(negatives)) for p, negatives in farther if negatives]


def by_loops(x, labels, margin, mining, distance, over):
    d, means, costs = metric(x, distance), [], []
    for a in range(len(x)):
        own = []
        for p, n in triplets(d, labels, a, mining):
            own.append(torch.log1p(torch.exp(p - n)) if margin is None else (p - n + margin).clamp_min(0))
        means.append(sum(own) / max(len(own), 1))
        costs += own
    if over == "mean":
        return sum(means) / len(x)
    return sum(costs) / max(sum(bool(cost > 0) for cost in costs), 1)


@pytest.mark.parametrize("distance", ["l2", "squared_l2", "cosine"])
@EVERY
@MARGIN
@OVER
def test_value_and_gradient_are_those_of_the_loops(mining, margin, over, distance):
    x = points()
    loss_B = triplet_loss(x, LABELS, margin=margin, mining=mining, distance=distance, over=over)
    expected = by_loops(x, LABELS, margin, mining, distance, over)
    assert loss_B.shape == (9,) and expected > 0.001
    torch.testing.assert_close(loss_B.mean(), expected, rtol=1e-11, atol=0)
    found, plain = (torch.autograd.grad(value, x)[0] for value in (loss_B.mean(), expected))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-13)


def test_each_anchor_has_its_own_mean():
    x = points().detach()
    d, loss_B = metric(x, "l2"), triplet_loss(x, LABELS, margin=0.4)
    for a in range(9):
        own = [max((p - n).item() + 0.4, 0.0) for p, n in triplets(d, LABELS, a, "all")]
        assert float(loss_B[a].detach()) == pytest.approx(sum(own) / max(len(own), 1), rel=1e-11)


@EVERY
@MARGIN
@OVER
def test_a_slice_with_gathered_columns_is_the_rows_of_the_whole(mining, margin, over):
    x, given = points(), {"margin": margin, "mining": mining, "over": over}
    whole_B = triplet_loss(x, LABELS, **given)
    columns = {"columns": x, "column_labels": LABELS, "anchors": 9}
    parts = [triplet_loss(x[a:b], LABELS[a:b], first_own=a, **columns, **given) for a, b in ((0, 4), (4, 9))]
    torch.testing.assert_close(torch.cat(parts), whole_B, rtol=1e-12, atol=1e-14)
    grads = [torch.autograd.grad(value, x)[0] for value in (sum(part.sum() for part in parts), whole_B.sum())]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)


def test_the_soft_margin_is_the_same_in_blocks_of_any_size(monkeypatch):
    x = points()
    whole = triplet_loss(x, LABELS, margin=None)
    (gradient,) = torch.autograd.grad(whole.sum(), x)
    monkeypatch.setattr(triplet, "BLOCK", 20)  # two pairs of 9 candidates each
    blocks = triplet_loss(x, LABELS, margin=None)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks.sum(), x)[0], gradient)


@pytest.mark.parametrize("margin", [0.2, None])
def test_all_triplets_of_512_samples_in_float32_agree_with_float64(margin):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 16, generator=generator)
    labels = torch.randint(2 if margin else 40, (512,), generator=generator)  # 33 million triplets for two classes
    narrow, wide = (triplet_loss(x.to(dtype), labels, margin=margin) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-6, atol=0)


def test_squared_l2_is_twice_the_cosine_at_half_the_margin():
    x = points()
    squared = triplet_loss(x, LABELS, margin=0.2, distance="squared_l2")
    torch.testing.assert_close(squared, 2 * triplet_loss(x, LABELS, margin=0.1, distance="cosine"))


@EVERY
@MARGIN
def test_scale_invariance_and_orthogonal_gradient(mining, margin):
    x = points()
    loss_B = triplet_loss(x, LABELS, margin=margin, mining=mining)
    factors = torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(triplet_loss(factors * x, LABELS, margin=margin, mining=mining), loss_B)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert float((gradient * x.detach()).sum(1).abs().max()) < 1e-12 and float(gradient.norm()) > 0.01


@EVERY
@MARGIN
@OVER
@pytest.mark.parametrize("case", ["alone", "classes of one", "one class", "duplicates", "zeros"])
def test_degenerate_batches_are_finite_with_their_gradient(mining, margin, over, case):
    x = points(4, torch.float32).detach()
    x = {"alone": x[:1], "duplicates": x[:1].repeat(4, 1), "zeros": 0 * x}.get(case, x).requires_grad_()
    labels = {"classes of one": [0, 1, 2, 3], "alone": [0], "one class": [0] * 4}.get(case, [0, 0, 1, 1])
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = triplet_loss(x, torch.tensor(labels), margin=margin, mining=mining, over=over)
        (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert bool(gradient.isfinite().all())
    if case in ("duplicates", "zeros") and mining != "semi_hard":
        collapsed = math.log(2) if margin is None else margin
        torch.testing.assert_close(loss_B.detach(), torch.full((4,), collapsed))
    else:  # no triplet at all; of duplicates no negative is farther
        assert float(loss_B.detach().abs().max()) == 0.0 and float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
@MARGIN
def test_half_precision_and_autocast_compute_in_float32(mining, margin, dtype):
    x = points(dtype=dtype)
    with torch.autocast("cpu", dtype):
        loss_B = triplet_loss(x, LABELS, margin=margin, mining=mining)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(
        loss_B, triplet_loss(x.float(), LABELS, margin=margin, mining=mining), rtol=1e-6, atol=1e-6
    )
    loss_B.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_errors():
    x = points()
    with pytest.raises(ValueError, match="mining 'easy'.*choose all, semi_hard, hard; l2, squared_l2, cosine; mean or"):
        triplet_loss(x, LABELS, margin=0.1, mining="easy")
    with pytest.raises(ValueError, match="distance 'l1'"):
        triplet_loss(x, LABELS, margin=0.1, distance="l1")
    with pytest.raises(ValueError, match="over 'sum'"):
        triplet_loss(x, LABELS, margin=0.1, over="sum")
    with pytest.raises(ValueError, match="anchors=None with 9 columns, of which 0 to 8"):
        triplet_loss(x, LABELS, margin=0.1, over="nonzero", columns=x, column_labels=LABELS)
    with pytest.raises(ValueError, match="columns and column_labels belong together"):
        triplet_loss(x, LABELS, margin=0.1, columns=x)
    with pytest.raises(ValueError, match="pairs need one integer class a sample"):
        triplet_loss(x, LABELS.double(), margin=0.1)
