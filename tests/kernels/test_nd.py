"""ND loss: official arrays, loops, both branches in closed form, its halves, mixed centers and degenerate features."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, one_hot

from kernels.nd import nd_loss

ARRAYS = np.load(Path(__file__).parents[1] / "reference" / "nd_loss" / "nd_values.npz", allow_pickle=False)
CASES = ["small", "large", "mixed", "equal_norm", "aligned"]


def tensor(key):
    return torch.from_numpy(np.asarray(ARRAYS[key]))


def draw(rows=6, width=5, classes=4, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    s, t, means = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (rows, rows, classes))
    return (scale * s).requires_grad_(), t, means, torch.randint(classes, (rows,), generator=generator)


def gradient(loss, s):
    return torch.autograd.grad(loss.sum(), s)[0]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_loss(case):
    s = tensor(f"{case}.student_emb").requires_grad_()
    loss = nd_loss(s, tensor("teacher_emb"), tensor("centers"), tensor("labels")).mean()
    torch.testing.assert_close(loss, tensor(f"{case}.loss"), rtol=0, atol=1e-9)
    if case != "equal_norm":
        torch.testing.assert_close(gradient(loss, s), tensor(f"{case}.grad_student"), rtol=0, atol=1e-9)
    if case == "mixed":
        torch.testing.assert_close(2 * loss, tensor("factor_2_loss_mixed"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_equals_the_loop(scale):
    s, t, means, y = draw(scale=scale)
    found = nd_loss(s, t, means, y)
    halves = nd_loss(s, t, means, y, direction_only=True), nd_loss(s, t, means, y, norm_only=True)
    for i, label in enumerate(y.tolist()):
        a, b, c = (row.tolist() for row in (s[i], t[i], means[label]))
        ns, nt, nc = (sum(x * x for x in row) ** 0.5 for row in (a, b, c))
        along = sum(x * e / nc for x, e in zip(a, c, strict=True))
        values = [1 - along / max(ns, nt), 1 - along / ns, 1 - ns / max(ns, nt)]
        assert [x[i].item() for x in (found, *halves)] == pytest.approx(values, rel=1e-12, abs=1e-12)
    assert (found >= 0).all() and (found <= 2).all()
    direction, size = halves
    torch.testing.assert_close(1 - found, (1 - direction) * (1 - size), rtol=0, atol=1e-12)
    torch.testing.assert_close(nd_loss(s, t, means, y, norm=False), direction, rtol=0, atol=0)
    torch.testing.assert_close(direction, 1 - cosine_similarity(s, means[y]), rtol=0, atol=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nd_loss(s[order], t[order], means, y[order]), found[order], rtol=0, atol=0)


def test_gradients_in_closed_form():
    s, t, means, y = draw(seed=1)
    e = means[y] / means[y].norm(dim=1, keepdim=True)
    short = (0.5 * t.norm(dim=1, keepdim=True) * s / s.norm(dim=1, keepdim=True)).detach().requires_grad_()
    found = gradient(nd_loss(short, t, means, y), short)
    torch.testing.assert_close(found, -e / t.norm(dim=1, keepdim=True), rtol=0, atol=1e-12)
    doubled = nd_loss(2 * short.detach(), t, means, y)  # affine: 1 - 2 (1 - L), up to the equal norm
    torch.testing.assert_close(1 - doubled, 2 * (1 - nd_loss(short, t, means, y)), rtol=0, atol=1e-12)

    long = (4 * short).detach().requires_grad_()
    ns = long.detach().norm(dim=1, keepdim=True)
    found = gradient(nd_loss(long, t, means, y), long)
    along = (long.detach() * e).sum(1, keepdim=True)
    torch.testing.assert_close(found, -(e / ns - along * long.detach() / ns**3), rtol=0, atol=1e-12)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close((found * long.detach()).sum(1), zero, rtol=0, atol=1e-12)
    torch.testing.assert_close(nd_loss(7 * long, t, means, y), nd_loss(long, t, means, y), rtol=0, atol=1e-12)


def test_equal_norms_are_the_students_branch():
    s = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    t, means, y = torch.tensor([[4.0, 3.0]]).double(), torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
    found = gradient(nd_loss(s, t, means, y), s)
    torch.testing.assert_close((found * s.detach()).sum(), torch.zeros(()).double(), rtol=0, atol=1e-15)
    sizes = [gradient(nd_loss(s * a, t, means, y, norm_only=True), s) for a in (1 - 1e-9, 1.0)]
    assert sizes[0].norm().item() == pytest.approx(0.2) and sizes[1].norm() < 1e-15
    near = [nd_loss(s * a, t, means, y).item() for a in (1 - 1e-9, 1.0, 1 + 1e-9)]
    assert near == pytest.approx([near[1]] * 3, abs=1e-8), "continuous"


@pytest.mark.parametrize("keys", [{}, {"direction_only": True}, {"norm_only": True}, {"norm": False}], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_are_those_of_finite_differences(keys, soft):
    s, t, means, y = draw(seed=3)
    labels = one_hot(y, 4).double() * 0.7 + 0.3 / 4 if soft else y
    assert torch.autograd.gradcheck(lambda s: nd_loss(s, t, means, labels, **keys), (s,))


def test_known_values():
    t, means = torch.ones(1, 2), torch.tensor([[0.0, 3.0]])
    y = torch.tensor([0])
    for s, value in (([0.0, 9.0], 0.0), ([0.0, -9.0], 2.0), ([9.0, 0.0], 1.0), ([0.0, 0.5**0.5], 0.5)):
        assert nd_loss(torch.tensor([s]), t, means, y).item() == pytest.approx(value, abs=1e-6)


def test_only_the_direction_of_a_mean_counts():
    s, t, means, y = draw(seed=4)
    scaled = means * torch.tensor([1e-3, 0.5, 7.0, 1e6], dtype=torch.float64)[:, None]
    torch.testing.assert_close(nd_loss(s, t, scaled, y), nd_loss(s, t, means, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_teacher_means_and_labels_have_no_gradient(soft):
    s, t, means, y = draw(seed=5)
    labels = one_hot(y, 4).double().requires_grad_() if soft else y
    inputs = (s, t.requires_grad_(), means.requires_grad_(), *([labels] if soft else []))
    found = torch.autograd.grad(nd_loss(s, t, means, labels).sum(), inputs, allow_unused=True)
    assert found[0].any() and all(grad is None for grad in found[1:])


def test_descent_grows_and_turns_the_feature():
    s, t, means, y = draw(rows=1, seed=6, scale=0.01)
    before = s.detach().clone()
    for step in range(20000):
        grad = gradient(nd_loss(s, t, means, y), s)
        s = (s - 0.05 * grad).detach().requires_grad_()
        if not step:
            assert s.norm() > before.norm()
            assert cosine_similarity(s, means[y]) > cosine_similarity(before, means[y])
    assert cosine_similarity(s, means[y]).item() == pytest.approx(1, abs=1e-4)
    assert s.norm().item() == pytest.approx(t.norm().item(), rel=0.05)


def test_mixed_centers():
    s, t, means, y = draw(seed=7)
    plain, flipped = nd_loss(s, t, means, y), nd_loss(s, t, means, y.flip(0))
    for lam, expected in ((1.0, plain), (0.0, flipped), (0.3, None)):
        labels = lam * one_hot(y, 4).double() + (1 - lam) * one_hot(y.flip(0), 4).double()
        if expected is None:
            center = lam * means[y] + (1 - lam) * means[y].flip(0)
            expected = nd_loss(s, t, center, torch.arange(6))
        torch.testing.assert_close(nd_loss(s, t, means, labels), expected, rtol=0, atol=1e-12)
    smoothed = 0.9 * one_hot(y, 4).double() + 0.1 / 4
    center = 0.9 * means[y] + 0.1 * means.mean(0)
    torch.testing.assert_close(
        nd_loss(s, t, means, smoothed), nd_loss(s, t, center, torch.arange(6)), rtol=0, atol=1e-12
    )
    aligned = nd_loss(2 * t, t, t, torch.arange(6))
    torch.testing.assert_close(aligned, torch.zeros_like(aligned), rtol=0, atol=1e-12, msg="the teacher's feature")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_degenerate_and_extreme_features_are_finite(dtype):
    rows = torch.tensor([[0.0, 0.0, 0.0], [1e4, -1e4, 1e4], [1e-4, 0.0, 0.0], [1e4, 0.0, 0.0], [1e-20, 0.0, 1e-20]])
    s, t = (x.reshape(-1, 3).to(dtype) for x in (rows[:, None].expand(5, 5, 3), rows[None].expand(5, 5, 3)))
    means = torch.tensor([[1e4, 1.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 2.0, 3.0]], dtype=dtype)
    y = torch.arange(25) % 3
    for labels in (y, one_hot(y, 3), one_hot(y, 3).to(dtype) * 0.5):
        for keys in ({}, {"direction_only": True}, {"norm_only": True}):
            for size in (25, 1, 0):
                leaf = s[:size].clone().requires_grad_()
                loss = nd_loss(leaf, t[:size], means, labels[:size], **keys)
                assert loss.shape == (size,) and loss.dtype == torch.promote_types(dtype, torch.float32)
                grad = gradient(loss, leaf)
                assert loss.isfinite().all() and grad.isfinite().all() and grad.dtype == dtype
    nothing = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    loss = nd_loss(nothing, nothing.detach(), means, torch.tensor([0]))
    assert loss.item() == 1 and not gradient(loss, nothing).any(), "both are zero"
    loss = nd_loss(nothing, means[2:], means, torch.tensor([2]))
    expected = -means[2:] / means[2:].float().square().sum().to(dtype)
    torch.testing.assert_close(gradient(loss, nothing), expected, msg="a dead feature is revived")
    leaf = s[6:7].clone().requires_grad_()
    loss = nd_loss(leaf, t[6:7], means, torch.tensor([1]))
    assert loss.item() == 1 and not gradient(loss, leaf).any(), "a mean without direction"


def test_a_mean_that_is_not_finite_is_seen():
    s, t, means, y = draw(seed=8)
    means[2] = torch.nan
    assert nd_loss(s, t, means, y).isnan().tolist() == (y == 2).tolist()


def test_precision_under_autocast():
    s, t, means, y = (x.float() if x.is_floating_point() else x for x in draw(seed=9))
    for labels in (y, one_hot(y, 4).float()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nd_loss(s, t, means, labels)
        torch.testing.assert_close(found, nd_loss(s, t, means, labels), rtol=0, atol=0)


def test_refusals():
    s, t, means, y = draw()
    for call in (lambda: nd_loss(s[:, :4], t, means, y), lambda: nd_loss(s, t[:3], means, y),
                 lambda: nd_loss(s, t, means[:, :4], y), lambda: nd_loss(s[0], t[0], means, y)):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be \[B, D\], \[B, D\] and \[C, D\], got .* needs a projector"):
            call()
    with pytest.raises(ValueError, match=r"labels of shape \[6, 3\] for 6 features and 4 class means; give \[B\]"):
        nd_loss(s, t, means, torch.zeros(6, 3))
    for labels in (y[:3], y.double()):
        with pytest.raises(ValueError, match="one integer class a row is needed"):
            nd_loss(s, t, means, labels)
    for keys in ({"direction_only": True}, {"norm": False}):
        with pytest.raises(ValueError, match="norm_only leaves out the direction, .* choose one"):
            nd_loss(s, t, means, y, norm_only=True, **keys)


def test_nothing_waits_for_the_device(monkeypatch):
    """Tensors without data refuse whatever would read them (and know no autocast)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    t, means = torch.zeros(4, 3, device="meta"), torch.zeros(5, 3, device="meta")
    for labels in (torch.zeros(4, dtype=torch.int64, device="meta"), torch.zeros(4, 5, device="meta")):
        for keys in ({}, {"direction_only": True}, {"norm_only": True}):
            s = torch.zeros(4, 3, device="meta", requires_grad=True)
            assert gradient(nd_loss(s, t, means, labels, **keys), s).shape == (4, 3)
