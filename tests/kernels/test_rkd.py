"""Relational distillation: loops over pairs and triples, invariances, samples that coincide."""

import math
from contextlib import nullcontext

import pytest
import torch

from kernels.rkd import rkd_angle_loss, rkd_distance_loss

LOSSES = [rkd_distance_loss, rkd_angle_loss]


def draw(rows=5, student=3, teacher=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in (student, teacher))
    return (2 * s).requires_grad_(), t


def gradient(loss, s):
    return torch.autograd.grad(loss, s)[0]


def smooth_l1(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def relations(rows):
    """Relative distances of pairs and cosines of triples."""
    rows = rows.tolist()
    numbers = range(len(rows))
    distance = {(i, j): math.dist(rows[i], rows[j]) for i in numbers for j in numbers}
    positive = [d for d in distance.values() if d > 0]
    mean = sum(positive) / len(positive)
    cosine = {}
    for i in numbers:
        for j in numbers:
            for k in numbers:
                a, b = ([x - y for x, y in zip(rows[n], rows[j], strict=True)] for n in (i, k))
                norms = distance[i, j] * distance[k, j]
                cosine[i, j, k] = sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0
    return {key: d / mean for key, d in distance.items()}, cosine


@pytest.mark.parametrize("copies", [False, True])
def test_both_are_loops(copies):
    s, t = (x.detach().clone() for x in draw())
    t[0] *= 9  # one far away: differences above 1 as well
    if copies:
        s[1], t[3] = s[2], t[4]
    for loss, ours, theirs in zip(LOSSES, relations(s), relations(t), strict=True):
        expected = sum(smooth_l1(ours[key] - theirs[key]) for key in ours) / len(ours)
        assert loss(s, t).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss):
    s, t = draw(seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, t), (s,))


@pytest.mark.parametrize("loss", LOSSES)
def test_invariances(loss):
    s, t = draw(seed=2)
    value = loss(s, t)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    for same in (s + 4, 7 * s, s @ turn):
        torch.testing.assert_close(loss(same, t), value, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss(s, 0.1 * t - 5), value, rtol=0, atol=1e-12)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(loss(s[order], t[order]), value, rtol=0, atol=1e-12)
    equal = (3 * t @ torch.eye(4, 6, dtype=torch.float64) + 1).requires_grad_()
    assert value > 1e-3 and loss(equal, t) < 1e-24 and gradient(loss(equal, t), equal).norm() < 1e-12
    t.requires_grad_()
    found = torch.autograd.grad(loss(s, t), (s, t), allow_unused=True)
    assert found[0].any() and found[1] is None


def test_gradient_does_not_see_the_scale():
    """The mean distance is differentiated: scaling the student changes nothing, so the gradient is orthogonal to it."""
    s, t = draw(seed=4)
    centred = (s - s.mean(0)).detach()
    for loss in LOSSES:
        assert (gradient(loss(s, t), s) * centred).sum().abs() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_coincident_and_extreme_rows_are_finite(loss, dtype):
    batches = [
        [[1.0, 2.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.0, 2.0]] * 4,
        [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]],
        [[1e4, -1e4], [1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]],
        [[1e-6, 0.0], [0.0, 0.0], [1e4, 0.0], [1e4, 1e-6]],
    ]
    for rows in batches:
        for other in (rows, torch.arange(2.0 * len(rows)).reshape(-1, 2).tolist(), [[5.0, 5.0]] * len(rows)):
            s = torch.tensor(rows, dtype=dtype, requires_grad=True)
            value = loss(s, torch.tensor(other, dtype=dtype))
            assert value.shape == () and value.dtype == torch.promote_types(dtype, torch.float32)
            grad = gradient(value, s)
            assert value.isfinite() and grad.isfinite().all() and grad.dtype == dtype
    alone = torch.ones(1, 3, requires_grad=True)
    assert loss(alone, torch.ones(1, 2)).item() == 0 and not gradient(loss(alone, torch.ones(1, 2)), alone).any()


def test_near_rows_keep_their_digits():
    """Far from the origin, where products would leave rounding alone."""
    s, t = (x.detach() for x in draw(seed=5))
    far = (s * 2.0**-10).float().double() + 100  # exact in float32
    for loss in LOSSES:
        exact = loss(far.float().double(), t)
        torch.testing.assert_close(loss(far.float(), t.float()).double(), exact, rtol=1e-5, atol=1e-7)


def test_precision_under_autocast():
    s, t = (x.float() for x in draw(seed=6))
    for loss in LOSSES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(s, t)
        torch.testing.assert_close(found, loss(s, t), rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_refusals(loss):
    for shapes in (((2, 3), (3, 3)), ((0, 3), (0, 3)), ((3,), (3,)), ((2, 3, 4), (2, 3))):
        with pytest.raises(ValueError, match=r"must be \[B, S\] and \[B, D\] of the same samples, at least one; got"):
            loss(*map(torch.zeros, shapes))


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_waits_for_the_device(loss, monkeypatch):
    """Tensors without data refuse whatever would read them (and know no autocast)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    s = torch.zeros(4, 3, device="meta", requires_grad=True)
    assert gradient(loss(s, torch.zeros(4, 2, device="meta")), s).shape == (4, 3)
