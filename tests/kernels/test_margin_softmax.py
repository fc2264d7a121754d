"""Margin heads against their angles one sample at a time, and their properties."""

import math

import pytest
import torch

from kernels.margin_softmax import margin_logits, margin_softmax_loss

LABELS = torch.tensor([0, 3, -1, 1, 2, 3])
HEADS = [("none", 0.0, 20.0), ("cos_face", 0.35, 64.0), ("arc_face", 0.5, 30.0), ("sphere_face", 4, 1.0)]
EVERY = pytest.mark.parametrize(("kind", "margin", "scale"), HEADS)


def points(dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)
    x, weight = (torch.randn(n, 7, generator=generator, dtype=torch.float64).to(dtype) for n in (6, 4))
    return x.requires_grad_(), weight.requires_grad_()


def target(cosine, kind, m):
    theta = torch.acos(cosine)
    if kind == "arc_face":
        return torch.cos(theta + m) if theta <= math.pi - m else cosine - m * math.sin(m)
    if kind == "sphere_face":
        k = int(m * theta.item() / math.pi)
        return (-1) ** k * torch.cos(m * theta) - 2 * k
    return cosine - (m if kind == "cos_face" else 0.0)


def by_loops(x, labels, weight, kind, margin, scale):
    losses = []
    for row, y in zip(x, labels.tolist(), strict=True):
        cosines = [row @ w / (row.norm() * w.norm()) for w in weight]
        if y == -1:
            losses.append(row.sum() * 0)
            continue
        z = [scale * (target(c, kind, margin) if j == y else c) for j, c in enumerate(cosines)]
        z = [value * row.norm() for value in z] if kind == "sphere_face" else z
        losses.append(torch.log(sum(torch.exp(value - z[y]) for value in z)))
    return torch.stack(losses)


@EVERY
def test_value_and_gradients_are_those_of_the_loops(kind, margin, scale):
    x, weight = points()
    found_B = margin_softmax_loss(x, LABELS, weight, kind=kind, margin=margin, scale=scale)
    expected_B = by_loops(x, LABELS, weight, kind, margin, scale)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-11, atol=1e-13)
    upstream = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    found, plain = (torch.autograd.grad(value, (x, weight), upstream) for value in (found_B, expected_B))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


@EVERY
def test_the_own_logit_over_all_angles(kind, margin, scale):
    theta = torch.linspace(0.001, math.pi - 0.001, 401, dtype=torch.float64)
    cosine = torch.stack([theta.cos(), torch.full_like(theta, 0.3)], 1)
    norms = torch.full_like(theta, 2.0) if kind == "sphere_face" else None
    given = {"kind": kind, "margin": margin, "scale": scale, "norms": norms}
    logits = margin_logits(cosine, torch.zeros(401, dtype=torch.long), **given)
    factor = scale * (2.0 if kind == "sphere_face" else 1.0)
    expected = factor * torch.stack([target(c, kind, margin) for c in theta.cos()])
    torch.testing.assert_close(logits[:, 0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits[:, 1], torch.full_like(theta, 0.3 * factor))
    assert bool((logits[:, 0].diff() < 0).all())  # a larger angle is always worse
    torch.testing.assert_close(margin_logits(cosine, torch.full((401,), -1), **given), factor * cosine)


@pytest.mark.parametrize(("kind", "margin"), [("cos_face", 0.0), ("arc_face", 0.0), ("sphere_face", 1)])
def test_without_a_margin_every_head_is_the_normalized_softmax(kind, margin):
    x, weight = points()
    x = torch.nn.functional.normalize(x)  # the length is a factor of sphere_face
    found = margin_softmax_loss(x, LABELS, weight, kind=kind, margin=margin, scale=20.0)
    u = torch.nn.functional.normalize(weight)
    plain = torch.nn.functional.cross_entropy(x @ u.T / 0.05, LABELS, reduction="none", ignore_index=-1)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    ("kind", "margins"), [("cos_face", (0, 0.2, 0.4)), ("arc_face", (0, 0.1, 0.7)), ("sphere_face", (1, 2, 3, 4))]
)
def test_the_loss_grows_with_the_margin(kind, margins):
    x, weight = points()
    losses = torch.stack([margin_softmax_loss(x, LABELS, weight, kind=kind, margin=m, scale=2.0) for m in margins])
    assert bool((losses[:, LABELS >= 0].diff(dim=0) > 0).all())


@EVERY
def test_scale_invariance_and_orthogonal_gradients(kind, margin, scale):
    x, weight = points()
    loss_B = margin_softmax_loss(x, LABELS, weight, kind=kind, margin=margin, scale=scale)
    grad_x, grad_w = torch.autograd.grad(loss_B.sum(), (x, weight))
    assert float((grad_w * weight.detach()).sum(1).abs().max()) < 1e-11
    scaled_x = 1.0 if kind == "sphere_face" else 7.0
    factors = torch.tensor([[0.1], [1.0], [3.0], [20.0]], dtype=torch.float64)
    again = margin_softmax_loss(scaled_x * x, LABELS, factors * weight, kind=kind, margin=margin, scale=scale)
    torch.testing.assert_close(again, loss_B)
    if kind != "sphere_face":
        assert float((grad_x * x.detach()).sum(1).abs().max()) < 1e-11 and float(grad_x.norm()) > 0.01


@EVERY
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rows_along_their_class_vector_are_finite_in_float32(kind, margin, scale, sign):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 16, generator=generator).requires_grad_()
    x = (sign * torch.rand(200, 1, generator=generator) * 5 * weight.detach()).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = margin_softmax_loss(x, torch.arange(200), weight, kind=kind, margin=margin, scale=scale)
        gradients = torch.autograd.grad(loss_B.sum(), (x, weight))
    assert bool(loss_B.isfinite().all()) and all(bool(gradient.isfinite().all()) for gradient in gradients)
    wide_B = margin_softmax_loss(x.double(), torch.arange(200), weight.double(), kind=kind, margin=margin, scale=scale)
    torch.testing.assert_close(loss_B.double(), wide_B, rtol=1e-3, atol=0.1)  # of logits up to 64


@EVERY
def test_zero_rows_and_one_class_are_finite(kind, margin, scale):
    x, weight = torch.zeros(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = margin_softmax_loss(x, torch.tensor([0, -1]), weight, kind=kind, margin=margin, scale=scale)
        gradients = torch.autograd.grad(loss_B.sum(), (x, weight))
    assert loss_B.tolist() == [0.0, 0.0] and all(bool(gradient.isfinite().all()) for gradient in gradients)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(kind, margin, scale, dtype):
    x, weight = points(dtype)
    with torch.autocast("cpu", dtype):
        loss_B = margin_softmax_loss(x, LABELS.int(), weight, kind=kind, margin=margin, scale=scale)
    plain_B = margin_softmax_loss(x.float(), LABELS, weight.float(), kind=kind, margin=margin, scale=scale)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, plain_B, rtol=1e-5, atol=1e-5)
    loss_B.sum().backward()
    assert bool(x.grad.isfinite().all()) and bool(weight.grad.isfinite().all())


def test_errors():
    cosine, labels, norms = torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2)
    with pytest.raises(ValueError, match="kind must be one of none, cos_face, arc_face, sphere_face, got 'curricular'"):
        margin_logits(cosine, labels, kind="curricular")
    for kind, margin, what in [
        ("none", 0.1, "0"), ("cos_face", -0.1, "at least 0"), ("arc_face", 28.6, "radians from 0"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"margin of {kind} must be {what}.*, got {margin}"):
            margin_logits(cosine, labels, kind=kind, margin=margin)
    with pytest.raises(ValueError, match="margin of sphere_face must be a whole number from 1, got 1.5"):
        margin_logits(cosine, labels, kind="sphere_face", margin=1.5, norms=norms)
    with pytest.raises(ValueError, match="kind sphere_face without norms"):
        margin_logits(cosine, labels, kind="sphere_face", margin=4)
    with pytest.raises(ValueError, match="kind arc_face with norms"):
        margin_logits(cosine, labels, kind="arc_face", margin=0.5, norms=norms)
    for wrong in (torch.zeros(2, 3), torch.tensor([0])):
        with pytest.raises(ValueError, match="one integer class a row is needed"):
            margin_logits(cosine, wrong, kind="none")
