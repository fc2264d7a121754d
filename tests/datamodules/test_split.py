"""Validation split and limits: stratified, disjoint, seeded, recorded."""

from __future__ import annotations

import pytest
import torch

from datamodules.split import allocate, choose, hold_out, index_digest, limit

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


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
    with pytest.raises(ValueError, match="leaves no training sample of class 1"):
        hold_out(torch.tensor([0, 0, 0, 1]), 0.7, 0)
    with pytest.raises(ValueError, match="data.limit_train=101, but it must be between 1 and the 100 samples"):
        limit(LABELS, torch.arange(100), 101, 0, "limit_train")
    with pytest.raises(ValueError, match="data.limit_test=0"):
        limit(LABELS, torch.arange(100), 0, 0, "limit_test")
