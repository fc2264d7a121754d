"""Validation split and limits: stratified, disjoint, seeded, recorded."""

from __future__ import annotations

import pytest
import torch

from datamodules.order.split import allocate, choose, hold_out, index_digest, limit

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
DIGESTS = (
    ("58784a5df4f5", "d47d46b09972", "5df3d8a99a22"),
    ("52ffdaaf3388", "120f3f06cea2", "0e550d894728"),
    ("dc2efb0e202e", "d7e7611f2dd9", "61edeca790ea"),
)


def test_allocate_against_fractions() -> None:
    for counts, total in (([6, 3, 1], 5), ([10, 10, 10], 7), ([1, 1, 1, 97], 10), ([5], 5), ([4, 4], 8), ([3, 2], 0)):
        shares = allocate(torch.tensor(counts), total).tolist()
        assert sum(shares) == total
        assert all(0 <= s <= c and abs(s - c * total / sum(counts)) < 1 for s, c in zip(shares, counts, strict=True))


def test_hold_out_is_stratified_disjoint_and_seeded() -> None:
    train, val = hold_out(LABELS, 0.2, seed=0)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(100))
    assert torch.bincount(LABELS[val]).tolist() == [10, 6, 4]
    assert torch.equal(val, hold_out(LABELS, 0.2, seed=0)[1])
    assert not torch.equal(val, hold_out(LABELS, 0.2, seed=1)[1])
    assert torch.equal(val, val.sort().values)


def test_splits_of_before_are_the_same_index_for_index() -> None:
    """Runs are resumed by their split: the digests are those of the first version of ``hold_out``."""
    sets = {
        "LABELS": (LABELS, DIGESTS[0]),
        "tail": (torch.arange(40).repeat_interleave(torch.arange(4, 44)), DIGESTS[1]),
        "two each": (torch.arange(50).repeat(2), DIGESTS[2]),
    }
    for name, (labels, digests) in sets.items():
        for fraction, digest in zip((0.05, 0.1, 0.33), digests, strict=True):
            assert index_digest(hold_out(labels, fraction, seed=3)[1])[:12] == digest, (name, fraction)


def test_a_long_tail_keeps_a_training_sample_of_each_class() -> None:
    sizes = [100] * 10 + [1] * 30
    labels = torch.arange(40).repeat_interleave(torch.tensor(sizes))
    train, val = hold_out(labels, 0.1, seed=0)
    assert len(val) == 103 and torch.bincount(labels[train], minlength=40).min() == 1
    held = torch.bincount(labels[val], minlength=40).tolist()
    assert sorted(held[:10]) == [10] * 7 + [11] * 3 and held[10:] == [0] * 30
    for seed in range(200):  # sizes and fractions at random: whatever can be held out is
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, 30, (20,), generator=generator) ** torch.randint(0, 2, (20,), generator=generator)
        labels, most = torch.arange(20).repeat_interleave(counts), int((counts - 1).sum())
        fraction = float(torch.rand(1, generator=generator)) * most / len(labels)
        train, val = hold_out(labels, fraction, seed)
        assert len(val) == round(fraction * len(labels)) and len(train) + len(val) == len(labels)
        assert set(labels[train].tolist()) == set(range(20))


def test_hold_out_of_nothing() -> None:
    train, val = hold_out(LABELS, 0.0, seed=0)
    assert len(train) == 100 and len(val) == 0


def test_limit_keeps_positions_and_proportions() -> None:
    train, _ = hold_out(LABELS, 0.2, seed=0)
    few = limit(LABELS, train, 40, 0, "limit_train")
    assert set(few.tolist()) <= set(train.tolist()) and torch.bincount(LABELS[few]).tolist() == [20, 12, 8]
    assert torch.equal(few, limit(LABELS, train, 40, 0, "limit_train"))
    assert not torch.equal(few, limit(LABELS, train, 40, 1, "limit_train"))
    assert limit(LABELS, train, None, 0, "limit_train") is train


def test_choices_of_other_names_are_unrelated() -> None:
    everything = torch.arange(100)
    one, other = (choose(LABELS, everything, 50, 0, name) for name in ("one", "other"))
    assert 10 < int((one & other).sum()) < 40


def test_digest_depends_on_every_position() -> None:
    assert index_digest(torch.tensor([1, 2])) != index_digest(torch.tensor([2, 1]))
    assert index_digest(torch.arange(3)) == index_digest(torch.arange(3))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"data.val_fraction must be in \[0, 1\), got 1.0"):
        hold_out(LABELS, 1.0, 0)
    few = torch.tensor([0, 0, 0, 1, 3])  # none of class 2
    with pytest.raises(ValueError, match="0.7 holds out 4 of 5 samples, and 2 are all but one of each class; class 1"):
        hold_out(few, 0.7, 0)
    with pytest.raises(ValueError, match="class 'fig' has 1, the fewest. Use a smaller fraction, or more images"):
        hold_out(few, 0.7, 0, ["pear", "fig", "kiwi", "leek"])
    assert hold_out(few, 0.4, 0)[0].tolist()[-2:] == [3, 4]
    with pytest.raises(ValueError, match="data.limit_train=101, but it must be between 1 and the 100 samples"):
        limit(LABELS, torch.arange(100), 101, 0, "limit_train")
    with pytest.raises(ValueError, match="data.limit_test=0"):
        limit(LABELS, torch.arange(100), 0, 0, "limit_test")
