"""Cosine similarities, pair masks and hardest negatives against plain loops and degenerate rows."""

import math

import pytest
import torch

from kernels.pairs import hardest, pair_masks, similarities, unit


def test_similarities_equal_plain_loops():
    rows = torch.randn(3, 4, dtype=torch.float64).tolist()
    columns = torch.randn(5, 4, dtype=torch.float64).tolist()
    found = similarities(torch.tensor(rows, dtype=torch.float64), torch.tensor(columns, dtype=torch.float64))
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            expected = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
            assert found[i, j].item() == pytest.approx(expected, abs=1e-14)


def test_a_row_of_zeros_stays_one_with_zero_gradient():
    rows = torch.randn(4, 3)
    rows[1] = 0
    rows.requires_grad_()
    similarity = similarities(rows)
    (similarity * torch.randn(4, 4)).sum().backward()
    assert not similarity[1].any() and not rows.grad[1].any()
    assert rows.grad.isfinite().all() and rows.grad[0].any()


def test_unit_has_the_right_gradient_and_precision():
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (rows,)) and torch.autograd.gradgradcheck(unit, (rows,))
    assert unit(rows.detach().half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert similarities(rows.detach().bfloat16()).dtype == torch.float32


def test_masks_equal_plain_loops_and_leave_out_the_anchor_by_its_position():
    labels, columns = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1, 0, 2])
    for own, (positive, negative) in ((0, pair_masks(labels)), (1, pair_masks(labels, columns, 1))):
        candidates = (columns if own else labels).tolist()
        for i, label in enumerate(labels.tolist()):
            for j, other in enumerate(candidates):
                assert positive[i, j].item() == (label == other and j != i + own)
                assert negative[i, j].item() == (label != other)


def test_hardest_equals_sorting_with_ties_by_index():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 4, (20, 12), generator=generator) / 4  # many ties
    negative = torch.rand(20, 12, generator=generator) < 0.7
    negative[0] = False
    negative[1, 2:] = False
    for k in (1, 3, 11, 12, 50):
        found = hardest(similarity, negative, k)
        for i in range(20):
            ranked = sorted(negative[i].nonzero()[:, 0].tolist(), key=lambda j: (-similarity[i, j].item(), j))
            assert found[i].nonzero()[:, 0].tolist() == sorted(ranked[:k])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: similarities(torch.ones(3)), r"must be \[B, D\] and \[N, D\]"),
        (lambda: similarities(torch.ones(3, 2), torch.ones(3, 4)), r"columns of shape \[3, 4\]"),
        (lambda: pair_masks(torch.ones(3)), "one integer class a sample"),
        (lambda: pair_masks(torch.ones(3, 2, dtype=torch.int64)), "one integer class a sample"),
        (lambda: pair_masks(torch.arange(3), torch.arange(4), 2), r"start at 0 .. 1"),
        (lambda: hardest(torch.ones(1, 2), torch.ones(1, 2) > 0, 0), "k must be at least 1"),
    ],
)
def test_errors_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
