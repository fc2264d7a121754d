"""The contrastive loss against plain loops over pairs, and its properties."""

import itertools

import pytest
import torch

from kernels.contrastive import chord, contrastive_loss

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 3])  # 2 and 3 are alone
FORMS = [
    {},
    {"pos_margin": 0.8, "neg_margin": -0.1},
    {"distance": "l2"},
    {"distance": "l2", "neg_margin": 1.0, "squared": True},
    {"distance": "l2", "pos_margin": 0.2, "neg_margin": 1.4, "over": "nonzero"},
    {"over": "nonzero", "neg_margin": 0.1, "squared": True},
]
EVERY = pytest.mark.parametrize("form", FORMS)


def points(count=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def by_loops(x, labels, distance="cosine", pos_margin=None, neg_margin=0.5, squared=False, over="sum"):
    """The mean over anchors, by the table of the docstring, one pair at a time."""
    terms = {True: [], False: []}
    for a, b in itertools.permutations(range(len(x)), 2):
        u, v = x[a] / x[a].norm(), x[b] / x[b].norm()
        positive = bool(labels[a] == labels[b])
        if distance == "cosine":
            excess = (1.0 if pos_margin is None else pos_margin) - u @ v if positive else u @ v - neg_margin
        else:
            d = (u - v).norm()
            excess = d - (pos_margin or 0.0) if positive else neg_margin - d
        if excess > 0:
            terms[positive].append(excess**2 / 2 if squared else excess)
    if over == "nonzero":
        return sum(sum(kind) / len(kind) for kind in terms.values() if kind)
    return sum(sum(kind) for kind in terms.values()) / len(x)


@EVERY
def test_value_and_gradient_are_those_of_the_loops(form):
    x = points()
    loss_B, expected = contrastive_loss(x, LABELS, **form), by_loops(x, LABELS, **form)
    assert loss_B.shape == (7,) and expected > 0.1
    torch.testing.assert_close(loss_B.mean(), expected, rtol=1e-12, atol=0)
    found, plain = (torch.autograd.grad(value, x)[0] for value in (loss_B.mean(), expected))
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-13)


def test_the_default_is_the_generic_form_up_to_a_constant_for_each_positive():
    x = points()
    u = torch.nn.functional.normalize(x)
    s, same = u @ u.T, LABELS[:, None] == LABELS
    generic_B = (same * -s).sum(1) + s.diagonal() + (~same * (s - 0.5).clamp_min(0)).sum(1)
    torch.testing.assert_close(contrastive_loss(x, LABELS), generic_B + same.sum(1) - 1)


@EVERY
def test_a_slice_with_gathered_columns_is_the_rows_of_the_whole(form):
    x, extra = points(), {"anchors": 7} if form.get("over") == "nonzero" else {}
    whole_B = contrastive_loss(x, LABELS, **form)
    parts = [
        contrastive_loss(x[a:b], LABELS[a:b], columns=x, column_labels=LABELS, first_own=a, **form, **extra)
        for a, b in ((0, 3), (3, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole_B, rtol=1e-12, atol=1e-14)
    grads = [torch.autograd.grad(value, x)[0] for value in (sum(part.sum() for part in parts), whole_B.sum())]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)


def test_a_memory_adds_pairs_but_no_anchors():
    x, memory, labels = points(), points(11)[7:].detach(), torch.tensor([0, 1, 2, 9])
    given = {"columns": torch.cat([x, memory]), "column_labels": torch.cat([LABELS, labels]), "neg_margin": 0.1}
    found = contrastive_loss(x, LABELS, over="nonzero", anchors=7, **given).mean()
    u, v = (torch.nn.functional.normalize(rows) for rows in (x, given["columns"]))
    pull, push = [], []
    for a, b in itertools.product(range(7), range(11)):
        if a != b:
            same, s = LABELS[a] == given["column_labels"][b], u[a] @ v[b]
            (pull if same else push).append(1 - s if same else (s - 0.1).clamp_min(0))
    means = [sum(side) / sum(term > 0 for term in side) for side in (pull, push)]
    torch.testing.assert_close(found, sum(means))


@EVERY
def test_scale_invariance_and_orthogonal_gradient(form):
    x = points()
    loss_B = contrastive_loss(x, LABELS, **form)
    factors = torch.linspace(0.1, 9, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(contrastive_loss(factors * x, LABELS, **form), loss_B)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert float((gradient * x.detach()).sum(1).abs().max()) < 1e-12 and float(gradient.norm()) > 0.1


@EVERY
@pytest.mark.parametrize("case", ["alone", "two classes of one", "one class", "duplicates", "zeros"])
def test_degenerate_batches_are_finite_with_their_gradient(form, case):
    x = points(4, torch.float32).detach()
    x = {"alone": x[:1], "duplicates": x[:1].repeat(4, 1), "zeros": 0 * x}.get(case, x).requires_grad_()
    labels = torch.arange(4) if case == "two classes of one" else torch.zeros(len(x), dtype=torch.long)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss_B = contrastive_loss(x, labels, **form)
        (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert bool(loss_B.isfinite().all()) and bool(gradient.isfinite().all())
    if case == "alone":
        assert float(loss_B.detach()) == 0.0 and float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
def test_half_precision_and_autocast_compute_in_float32(form, dtype):
    x = points(dtype=dtype)
    with torch.autocast("cpu", dtype):
        loss_B = contrastive_loss(x, LABELS, **form)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, contrastive_loss(x.float(), LABELS, **form), rtol=1e-6, atol=1e-6)
    loss_B.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_what_rounding_leaves_of_a_duplicate_is_no_distance():
    generator = torch.Generator().manual_seed(0)
    once = torch.randn(200, 128, generator=generator)
    x = torch.cat([once, 3 * once]).requires_grad_()  # their float32 cosines are up to 1e-6 from 1
    loss_B = contrastive_loss(x, torch.arange(200).repeat(2), distance="l2", neg_margin=-1.0)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    assert float(loss_B.detach().abs().max()) == 0.0 and float(gradient.abs().max()) == 0.0
    s = torch.tensor([1 - 3e-6, 0.5, -1.0], requires_grad=True)
    torch.testing.assert_close(chord(s), (2 - 2 * s.double()).sqrt().float())
    assert float(torch.autograd.grad(chord(s).sum(), s)[0].abs().max()) < 500


def test_errors():
    x = points()
    with pytest.raises(ValueError, match="distance 'l1' over 'sum'; choose cosine or l2"):
        contrastive_loss(x, LABELS, distance="l1")
    with pytest.raises(ValueError, match="over 'max'; choose cosine or l2, and sum or nonzero"):
        contrastive_loss(x, LABELS, over="max")
    for anchors in (None, 3, 9):
        with pytest.raises(ValueError, match=f"anchors={anchors} with 7 columns, of which 2 to 4 are the anchors here"):
            contrastive_loss(
                x[2:5], LABELS[2:5], over="nonzero", columns=x, column_labels=LABELS, first_own=2, anchors=anchors
            )
    with pytest.raises(ValueError, match="columns and column_labels belong together"):
        contrastive_loss(x, LABELS, columns=x)
    with pytest.raises(ValueError, match="pairs need one integer class a sample"):
        contrastive_loss(x, LABELS.double())
