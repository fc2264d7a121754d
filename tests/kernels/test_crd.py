"""Contrastive distillation: the loss by plain loops, and draws of negatives."""

import math

import pytest
import torch

from kernels.crd import OtherClasses, bank_scores, contrastive_nce


def test_scores_by_loops():
    generator = torch.Generator().manual_seed(0)
    rows, bank = (torch.randn(count, 4, dtype=torch.float64, generator=generator) for count in (3, 7))
    index = torch.tensor([[0, 6], [2, 2], [5, 1]])
    found = bank_scores(rows, bank, index, 0.5)
    for i in range(3):
        for j in range(2):
            assert float(found[i, j]) == pytest.approx(
                sum(float(rows[i, d] * bank[index[i, j], d]) for d in range(4)) / 0.5
            )


def test_loss_by_loops():
    scores = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul_(3)
    constant, rows = torch.tensor(7.0, dtype=torch.float64), 40
    found, noise = contrastive_nce(scores, constant, rows), 5 / 40
    for i in range(3):
        u = [math.exp(float(score)) / 7 for score in scores[i]]
        expected = -math.log(u[0] / (u[0] + noise + 1e-7))
        expected -= sum(math.log(noise / (x + noise + 1e-7)) for x in u[1:])
        assert float(found[i]) == pytest.approx(expected)


def test_gradient_and_extremes():
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: contrastive_nce(s, s.new_tensor(3.0), 9), scores)
    for scale in (1 / 0.07, -1 / 0.07):
        extreme = torch.full((2, 5), scale, requires_grad=True)
        value = contrastive_nce(extreme, torch.tensor(1e-3), 5)
        value.sum().backward()
        assert value.isfinite().all() and extreme.grad.isfinite().all()


def test_finite_where_a_small_temperature_makes_scores_large():
    """Scores of tau = 0.005 in float32, whose exponentials overflow, and a Z beyond float32."""
    for scores, constant in (([200.0, -200.0, 3.0], 1.0), ([-200.0, 200.0, 150.0], 1e60)):
        row = torch.tensor([scores], requires_grad=True)
        value = contrastive_nce(row, torch.tensor(constant, dtype=torch.float64), 10)
        value.sum().backward()
        exact = contrastive_nce(row.detach().double(), torch.tensor(constant, dtype=torch.float64), 10)
        assert value.dtype == torch.float32 and torch.allclose(value.double(), exact, rtol=1e-5)
        assert row.grad.isfinite().all()


def test_without_negatives_and_without_samples():
    assert contrastive_nce(torch.zeros(2, 1), torch.tensor(1.0), 5).abs().max() < 1e-6
    assert contrastive_nce(torch.zeros(0, 4), torch.tensor(1.0), 5).shape == (0,)


LABELS = torch.tensor([0, 1, 2, -1, 0, 1, 2, 1, 1, -1, 2])


def test_negatives_are_of_other_classes_and_differ():
    others = OtherClasses(LABELS)
    assert (others.count, others.fewest) == (9, 5)
    labels, index = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 5])
    for count in (0, 1, 3, 5):
        drawn = others.draw(count, labels, 0, 3, index)
        assert drawn.shape == (4, count)
        for row, label in zip(drawn.tolist(), labels.tolist(), strict=True):
            assert len(set(row)) == count, "one sample twice"
            assert all(LABELS[i] >= 0 and LABELS[i] != label for i in row)
    assert sorted(others.draw(5, labels, 0, 3, index)[1].tolist()) == [0, 2, 4, 6, 10], "all there are"


def test_draws_are_functions_of_seed_update_and_index():
    labels = torch.arange(400) % 4
    others, index = OtherClasses(labels), torch.arange(20)
    whole = others.draw(30, labels[index], 1, 2, index)
    assert torch.equal(whole[5:9], others.draw(30, labels[5:9], 1, 2, index[5:9])), "not of the batch"
    for seed, update in ((2, 2), (1, 3)):
        assert not torch.equal(whole, others.draw(30, labels[index], seed, update, index))
    before = torch.get_rng_state()
    others.draw(30, labels[index], 1, 2, index)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_candidate_is_as_likely():
    """60 candidates, 12 of them drawn: each in a fifth of 4000 draws, within four standard deviations."""
    labels = torch.arange(80) % 4
    index = torch.arange(0, 16_000, 4)  # of class 0
    drawn = OtherClasses(labels).draw(12, torch.zeros_like(index), 0, 0, index)
    counts = torch.bincount(drawn.flatten(), minlength=80)
    assert not counts[labels == 0].any()
    assert ((counts[labels > 0] - 800).abs() < 4 * (4000 * 0.2 * 0.8) ** 0.5).all()


def test_every_candidate_is_as_likely_where_the_pieces_are_not_equal():
    """60 candidates cut into 40 pieces, 20 of which have one candidate and 20 have two."""
    labels = torch.arange(80) % 4
    index = torch.arange(0, 16_000, 4)
    drawn = OtherClasses(labels).draw(40, torch.zeros_like(index), 0, 0, index)
    assert all(len(set(row)) == 40 for row in drawn[:50].tolist())
    counts, share = torch.bincount(drawn.flatten(), minlength=80), 40 / 60
    assert not counts[labels == 0].any()
    assert ((counts[labels > 0] - 4000 * share).abs() < 4 * (4000 * share * (1 - share)) ** 0.5).all()
