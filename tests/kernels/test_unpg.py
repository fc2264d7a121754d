"""Unified negative pairs against sorted lists and rows that are really lengthened, and their properties."""

import pytest
import torch

from kernels.margin_softmax import margin_logits
from kernels.pairs import similarities
from kernels.unpg import unpg_loss, unpg_negatives

LABELS = torch.tensor([0, 1, 2, 0, 1, -1, 3, 0])


def points(dtype=torch.float64, count=8):
    generator = torch.Generator().manual_seed(4)
    x, weight = (torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype) for n in (count, 4))
    return x.requires_grad_(), weight.requires_grad_()


def by_loops(similarity, labels, wisk):
    known = [i for i, label in enumerate(labels.tolist()) if label >= 0]
    pairs = [similarity[i, j] for i in known for j in known if i < j and labels[i] != labels[j]]
    ordered = sorted(value.item() for value in pairs)
    q1, q3 = ordered[int(len(pairs) / 4)], ordered[int(3 * len(pairs) / 4)]
    return [value for value in pairs if q1 - wisk * (q3 - q1) <= value <= q3 + wisk * (q3 - q1)], len(pairs)


@pytest.mark.parametrize(("wisk", "outliers"), [(1.5, False), (0.2, True), (0.0, True)])
def test_kept_pairs_and_the_loss_are_those_of_the_lengthened_rows(wisk, outliers):
    x, weight = points()
    labels = LABELS
    kept, number = by_loops(similarities(x), labels, wisk)
    found_K = unpg_negatives(similarities(x), labels, wisk=wisk)
    assert (len(kept) < number) == outliers and len(kept) >= number // 2
    torch.testing.assert_close(found_K, torch.stack(kept))

    logits = margin_logits(similarities(x, weight), labels, kind="cos_face", margin=0.35, scale=16.0)
    longer = torch.cat([logits, 16 * torch.stack(kept).expand(8, -1)], 1)
    expected_B = torch.nn.functional.cross_entropy(longer, labels, reduction="none", ignore_index=-1)
    loss_B = unpg_loss(logits, labels, 16 * found_K)
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-12, atol=0)
    found, plain = (torch.autograd.grad(v.sum(), (x, weight), retain_graph=True) for v in (loss_B, expected_B))
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    through_pairs = torch.autograd.grad(unpg_loss(logits.detach(), labels, 16 * found_K).sum(), x)[0]
    assert float(through_pairs.norm()) > 0.01


def test_both_tails_are_left_out():
    middle = torch.linspace(-0.1, 0.1, 13, dtype=torch.float64)
    values = torch.cat([middle, torch.tensor([0.9, -0.9], dtype=torch.float64)])
    similarity = torch.zeros(6, 6, dtype=torch.float64)
    row, column = torch.triu_indices(6, 6, 1)
    similarity[row, column] = values
    kept = unpg_negatives(similarity, torch.arange(6))
    torch.testing.assert_close(kept, middle)
    assert len(unpg_negatives(similarity, torch.arange(6), wisk=float("inf"))) == 15


def test_slices_share_the_pairs_of_the_whole_and_a_memory_adds_its_own():
    x, _ = points()
    whole = unpg_negatives(similarities(x), LABELS, wisk=float("inf"))
    parts = [
        unpg_negatives(similarities(x[a:b], x), LABELS[a:b], wisk=float("inf"), column_labels=LABELS, first_own=a)
        for a, b in ((0, 3), (3, 8))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    beside = unpg_negatives(similarities(x[:3], x), LABELS[:3], wisk=float("inf"), column_labels=LABELS)
    torch.testing.assert_close(beside, parts[0])


def test_a_pair_raises_every_loss_and_lowers_the_probability_of_the_class():
    x, weight = points()
    labels = LABELS.clamp_min(0)
    logits = margin_logits(similarities(x, weight), labels, kind="arc_face", margin=0.5, scale=8.0)
    pairs = 8 * unpg_negatives(similarities(x), labels)
    losses = torch.stack([unpg_loss(logits, labels, pairs[:k]) for k in range(len(pairs))])
    assert bool((losses.diff(dim=0) > 0).all())


@pytest.mark.parametrize("labels", [[2] * 8, [-1] * 8])
def test_without_pairs_it_is_the_base_loss_bit_for_bit(labels):
    x, weight = points(torch.float32)
    labels = torch.tensor(labels)
    logits = margin_logits(similarities(x, weight), labels, kind="cos_face", margin=0.35)
    kept = unpg_negatives(similarities(x), labels)
    base = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
    loss = unpg_loss(logits, labels, kept)
    assert len(kept) == 0 and torch.equal(loss, base)
    assert bool(torch.autograd.grad(loss.sum(), x)[0].isfinite().all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_and_duplicates(count):
    x, _ = points(torch.float32, count)
    assert len(unpg_negatives(similarities(x), torch.arange(count))) in {1: (0,), 2: (1,), 3: (2, 3)}[count]
    same = x[:1].detach().repeat(4, 1).requires_grad_()
    kept = unpg_negatives(similarities(same).round(decimals=5), torch.arange(4))
    assert len(kept) == 6  # a box without width keeps what is equal to it
    loss = unpg_loss(64 * similarities(same), torch.arange(4), 64 * kept)
    assert bool(loss.isfinite().all()) and bool(torch.autograd.grad(loss.sum(), same)[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    x, weight = points(dtype)
    with torch.autocast("cpu", dtype):
        kept = unpg_negatives(similarities(x), LABELS)
        loss = unpg_loss(64 * similarities(x, weight), LABELS, 64 * kept)
        rounded = unpg_loss((64 * similarities(x, weight)).to(dtype), LABELS, (64 * kept).to(dtype))
    assert loss.dtype == rounded.dtype == torch.float32 and bool(rounded.isfinite().all())
    assert bool(torch.autograd.grad(loss.sum(), x)[0].isfinite().all()) and float(loss[5].detach()) == 0.0


def test_errors():
    with pytest.raises(ValueError, match="wisk must be at least 0 .*, got -1"):
        unpg_negatives(torch.eye(2), torch.arange(2), wisk=-1)
    with pytest.raises(ValueError, match="one integer class a row is needed"):
        unpg_loss(torch.eye(2), torch.eye(2), torch.zeros(1))
