"""The Multi-Similarity loss against official arrays, plain loops, its closed-form weights and its invariances."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels.multi_similarity
from kernels.multi_similarity import mine, multi_similarity_loss
from kernels.pair_form import clean_loss, multi_similarity
from kernels.pairs import pair_masks, pair_weights, similarities, unit

REFERENCE = np.load(
    Path(__file__).parents[1] / "reference" / "multi_similarity" / "ms_edge_cases.npz", allow_pickle=False
)
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])


def tensor(key):
    return torch.from_numpy(np.asarray(REFERENCE[key]))


def draw(labels=LABELS, width=5, seed=0):
    """Overlapping classes, so that the mining keeps some pairs of most anchors and drops some."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(int(labels.max()) + 1, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return (centers[labels] + 0.7 * noise).requires_grad_()


def by_loops(similarity, labels, columns, first_own, alpha, beta, base, epsilon):
    """The page's formulas, one anchor at a time."""
    losses = []
    for i, label in enumerate(labels):
        row = similarity[i].tolist()
        positives = [s for j, s in enumerate(row) if columns[j] == label and j != i + first_own]
        negatives = [s for j, s in enumerate(row) if columns[j] != label]
        if epsilon is not None:
            least, most = min(positives, default=math.inf), max(negatives, default=-math.inf)
            positives = [s for s in positives if s - epsilon < most]
            negatives = [s for s in negatives if s + epsilon > least]
        pull = math.log1p(sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
        losses.append(pull + math.log1p(sum(math.exp(beta * (s - base)) for s in negatives)) / beta)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(
    ("case", "value", "gradient"),
    [
        ("dup", "loss_official", "grad_official"),
        ("dup", "loss_pml", "grad_official"),
        ("single", "loss_pml", "grad_pml"),
        ("single", "loss_skip", "grad_pml"),
    ],
)
def test_equals_the_official_arrays(case, value, gradient):
    z = tensor(f"{case}_z").requires_grad_()
    loss = multi_similarity_loss(z, tensor(f"{case}_labels"))
    loss.mean().backward()
    torch.testing.assert_close(loss.mean().detach(), tensor(f"{case}_{value}"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z.grad, tensor(f"{case}_{gradient}"), rtol=1e-10, atol=1e-14)
    if case == "single":
        torch.testing.assert_close(loss.detach(), tensor("single_per_anchor"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon", [None, 0.1, 0.39, -0.1])
@pytest.mark.parametrize(("alpha", "beta", "base"), [(2.0, 40.0, 0.5), (17.97, 75.66, 0.77), (2.0, 50.0, 1.0)])
@pytest.mark.parametrize("block", [1, 30, 1 << 20])
def test_equals_plain_loops(epsilon, alpha, beta, base, block, monkeypatch):
    monkeypatch.setattr(kernels.multi_similarity, "_BLOCK_CPU", block)
    z = draw().detach()
    settings = {"alpha": alpha, "beta": beta, "base": base, "epsilon": epsilon}
    labels = LABELS.tolist()
    expected = by_loops(similarities(z), labels, labels, 0, **settings)
    torch.testing.assert_close(multi_similarity_loss(z, LABELS, **settings), expected, rtol=1e-11, atol=1e-13)
    columns, column_labels = torch.cat([draw(seed=1).detach(), z]), LABELS.repeat(2)
    expected = by_loops(similarities(z, columns), labels, column_labels.tolist(), 9, **settings)
    found = multi_similarity_loss(z, LABELS, columns=columns, column_labels=column_labels, first_own=9, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("block", [1, 30, 1 << 20])
@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_gradients_of_anchors_and_columns(epsilon, block, monkeypatch):
    monkeypatch.setattr(kernels.multi_similarity, "_BLOCK_CPU", block)
    z, memory = draw(), draw(seed=3)
    column_labels = LABELS.repeat(2)

    def with_columns(z, memory):
        columns = torch.cat([memory, z])
        return multi_similarity_loss(
            z, LABELS, epsilon=epsilon, columns=columns, column_labels=column_labels, first_own=9
        )

    assert torch.autograd.gradcheck(lambda z: multi_similarity_loss(z, LABELS, epsilon=epsilon), (z,))
    assert torch.autograd.gradcheck(with_columns, (z, memory))
    assert torch.autograd.gradcheck(with_columns, (z, memory.detach()))
    assert torch.autograd.gradcheck(with_columns, (z.detach(), memory))


def test_weights_are_the_closed_form_and_fall_with_other_negatives():
    z = draw().detach()
    S, (positive, negative) = similarities(z), pair_masks(LABELS)
    positive, negative = mine(S, positive, negative, 0.1)
    weights = pair_weights(lambda s: clean_loss(multi_similarity(2.0, 40.0, 0.5), s, positive, negative), S)
    for i in range(len(z)):
        for mask, slope in ((positive, -2.0), (negative, 40.0)):
            kept = mask[i].nonzero()[:, 0].tolist()
            for j in kept:
                others = sum(math.exp(slope * (S[i, k] - S[i, j]).item()) for k in kept)
                expected = 1.0 / (math.exp(-slope * (S[i, j].item() - 0.5)) + others)
                assert weights[i, j].item() == pytest.approx(expected, rel=1e-11)
    assert not weights[~(positive | negative)].any()
    # the loss has the gradient of its weighted similarities: the embeddings see exactly these weights
    leaf = z.clone().requires_grad_()
    signed = weights * (negative.double() - positive.double())
    (expected,) = torch.autograd.grad((signed * similarities(leaf)).sum(), leaf)
    (found,) = torch.autograd.grad(multi_similarity_loss(leaf, LABELS).sum(), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_huge_epsilon_is_no_mining_where_both_sides_exist_and_minus_two_is_zero():
    z, labels = draw().detach(), LABELS
    found, plain = multi_similarity_loss(z, labels, epsilon=1e6), multi_similarity_loss(z, labels, epsilon=None)
    torch.testing.assert_close(found[:-1], plain[:-1], rtol=0, atol=0)
    assert found[-1] == 0 and plain[-1] > 0  # the singleton
    assert not multi_similarity_loss(z, labels, epsilon=-2.0).any()


def test_the_mining_is_strict():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # similarities 0 and -1 to the first
    labels = torch.tensor([0, 0, 1])
    assert multi_similarity_loss(z, labels, epsilon=1.0)[0] == 0  # -1 + 1 > 0 and 0 - 1 < -1 are both false
    assert multi_similarity_loss(z, labels, epsilon=1.0 + 2.0**-40)[0] > 0.1
    S, masks = similarities(z), pair_masks(labels)
    assert [kept[0].any().item() for kept in mine(S, *masks, epsilon=1.0)] == [False, False]
    assert [kept[0].any().item() for kept in mine(S, *masks, epsilon=1.0 + 2.0**-40)] == [True, True]


def test_permutation_and_scale():
    z, order = draw().detach(), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    loss = multi_similarity_loss(z, LABELS)
    torch.testing.assert_close(multi_similarity_loss(z[order], LABELS[order]), loss[order])
    scaled = (z * torch.linspace(0.01, 100, 9, dtype=torch.float64)[:, None]).requires_grad_()
    found = multi_similarity_loss(scaled, LABELS)
    torch.testing.assert_close(found.detach(), loss)
    found.sum().backward()
    assert (scaled.grad * scaled).sum(1).abs().max() < 1e-12 and scaled.grad.abs().max() > 1e-4


def test_large_beta_is_a_hinge_on_the_hardest_negative():
    z, (positive, negative) = draw().detach(), pair_masks(LABELS)
    sharp = multi_similarity_loss(z, LABELS, beta=1e6, base=0.3, epsilon=None)
    S = similarities(z)
    pull = (torch.exp(-2.0 * (S - 0.3)) * positive).sum(1).log1p() / 2.0
    push = (S.masked_fill(~negative, -1.0).amax(1) - 0.3).clamp(min=0.0)
    torch.testing.assert_close(sharp, pull + push, rtol=0, atol=1e-5)
    assert (push > 0).any() and (push == 0).any()


@pytest.mark.parametrize(
    ("labels", "epsilon"),
    [
        (torch.zeros(4, dtype=torch.int64), 0.1),  # one class
        (torch.arange(4), 0.1),  # singletons
        (torch.tensor([0, 0, 1, 1]), -5.0),  # nothing mined
        (torch.zeros(1, dtype=torch.int64), None),  # a batch of one
    ],
)
def test_nothing_kept_is_zero_in_the_graph(labels, epsilon):
    z = torch.randn(len(labels), 3, requires_grad=True)
    loss = multi_similarity_loss(z, labels, epsilon=epsilon)
    loss.mean().backward()
    assert loss.shape == labels.shape and not loss.any() and loss.requires_grad
    assert not z.grad.any() and z.grad.isfinite().all()


def test_separated_classes_have_no_loss_and_a_row_of_zeros_no_gradient():
    z = torch.tensor([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0], [0.01, 0.99]], requires_grad=True)
    loss = multi_similarity_loss(z, torch.tensor([0, 0, 1, 1]))
    loss.sum().backward()
    assert not loss.any() and not z.grad.any()
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.3, 1.0], [1.0, 0.9]], requires_grad=True)
    loss = multi_similarity_loss(z, torch.tensor([0, 0, 1, 1]))
    loss.sum().backward()
    assert loss.isfinite().all() and z.grad.isfinite().all() and not z.grad[1].any() and z.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_where_plain_exponentials_overflow(dtype):
    z = draw(seed=4).detach().float()
    z[3] = z[0]  # a negative with similarity 1: exp(75.66 * 0.23 ...) and far more with a small base
    low = z.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = multi_similarity_loss(low, LABELS, alpha=17.97, beta=400.0, base=-0.5, epsilon=0.39)
    loss.mean().backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == dtype
    assert loss.isfinite().all() and low.grad.isfinite().all() and low.grad.any()
    exact = multi_similarity_loss(low.detach().double(), LABELS, alpha=17.97, beta=400.0, base=-0.5, epsilon=0.39)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)


def test_nan_in_an_embedding_is_not_hidden():
    z = draw().detach().clone()
    z[0, 0] = float("nan")
    assert multi_similarity_loss(z, LABELS)[0].isnan()


def test_input_stays_and_backward_can_run_twice():
    z = draw()
    before = z.detach().clone()
    loss = multi_similarity_loss(z, LABELS).sum()
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(z.detach(), before)
    with torch.no_grad():
        torch.testing.assert_close(multi_similarity_loss(z, LABELS).sum(), loss.detach(), rtol=0, atol=0)


def test_mined_masks_give_the_same_loss_through_the_generic_form():
    z = draw().detach()
    S = unit(z) @ unit(z).T
    kept = mine(S, *pair_masks(LABELS), epsilon=0.1)
    torch.testing.assert_close(clean_loss(multi_similarity(), S, *kept), multi_similarity_loss(z, LABELS))
    assert torch.equal(kept[0].any(1), kept[1].any(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha and beta must be positive"),
        ({"beta": -1.0}, "alpha and beta must be positive"),
        ({"epsilon": float("inf")}, "None keeps every pair"),
        ({"columns": torch.ones(9, 4)}, "must be .B, D. and .N, D."),
        ({"columns": torch.ones(9, 5)}, "give both or neither"),
        ({"columns": torch.ones(12, 5), "column_labels": torch.arange(12), "first_own": 4}, "start at 0 .. 3"),
        ({"columns": torch.ones(12, 5), "column_labels": torch.arange(11)}, "one integer class a sample"),
    ],
)
def test_errors_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        multi_similarity_loss(torch.ones(9, 5), LABELS, **settings)
