"""The order of samples: a function of (seed, epoch) with an exact position, shared out among ranks."""

from __future__ import annotations

import pytest
import torch

from datamodules.order import order as order_module
from datamodules.order.order import Keys, ShuffledOrder, StoredOrder, earlier_visits, share


def plain(batches: list[Keys]) -> list[tuple[int, list[int], list[int]]]:
    return [(keys.epoch, keys.index.tolist(), keys.view.tolist()) for keys in batches]


def make(count: int = 23, batch_size: int = 5, seed: int = 0, drop_last: bool = False) -> ShuffledOrder:
    return ShuffledOrder(torch.arange(100, 100 + count), batch_size, seed, drop_last)


def test_each_epoch_visits_everything_once_in_another_order() -> None:
    order = make()
    first, second = plain(list(order.keys(0))), plain(list(order.keys(1)))
    assert [len(index) for _, index, _ in first] == [5, 5, 5, 5, 3] and len(order) == 5
    for epoch, batches in enumerate((first, second)):
        assert {e for e, _, _ in batches} == {epoch}
        assert sorted(i for _, index, _ in batches for i in index) == list(range(100, 123))
        assert all(v == 0 for _, _, view in batches for v in view)
    assert [b[1] for b in first] != [b[1] for b in second]
    assert plain(list(make())) == first
    assert plain(list(make(seed=1))) != first


def test_drop_last() -> None:
    order = make(drop_last=True)
    assert len(order) == 4 and [len(keys.index) for keys in order] == [5] * 4


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_position_continues_exactly(drop_last: bool) -> None:
    whole = make(drop_last=drop_last)
    expected = plain([keys for epoch in range(3) for keys in whole.keys(epoch)])
    per_epoch = len(whole)
    for done in range(3 * per_epoch):
        for epoch, batches in ((0, done), divmod(done, per_epoch)):
            resumed = make(drop_last=drop_last)
            resumed.set_position(epoch, batches)
            rest = [*resumed, *(keys for later in range(resumed.epoch + 1, 3) for keys in resumed.keys(later))]
            assert plain(rest) == expected[done:]
            assert len(resumed) == per_epoch


def test_every_batch_says_where_it_belongs() -> None:
    order = make()
    order.set_position(2, 1)
    assert [keys.position for keys in order] == [(2, 1), (2, 2), (2, 3), (2, 4)]
    assert [keys.position for keys in order.keys(3)] == [(3, number) for number in range(5)]
    assert [keys.position for keys in StoredOrder(torch.arange(5), 2)] == [(0, 0), (0, 1), (0, 2)]


def test_handing_out_changes_nothing() -> None:
    """Not even all of it, and an iterator is of the position at which it was made."""
    order = make()
    order.set_position(2, 1)
    expected = plain(list(make().keys(2, 1)))
    early = iter(order)
    assert plain(list(order)) == plain(list(order)) == expected and (order.epoch, order.start) == (2, 1)
    order.set_position(5)
    assert plain(list(early)) == expected and (order.epoch, order.start) == (5, 0)


def test_views_count_earlier_visits() -> None:
    assert earlier_visits(torch.tensor([5, 3, 5, 5, 3, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert earlier_visits(torch.tensor([], dtype=torch.int64)).tolist() == []
    order = ShuffledOrder(torch.tensor([7, 7, 8, 7]), 4, 0)
    (keys,) = order
    assert sorted(zip(keys.index.tolist(), keys.view.tolist(), strict=True)) == [(7, 0), (7, 1), (7, 2), (8, 0)]
    assert [v for i, v in zip(keys.index.tolist(), keys.view.tolist(), strict=True) if i == 7] == [0, 1, 2]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_every_batch(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = plain(list(make()))
    stored = plain(list(StoredOrder(torch.arange(21), 4)))
    for build, expected in ((make, alone), (lambda: StoredOrder(torch.arange(21), 4), stored)):
        by_rank = []
        for rank in range(world):
            monkeypatch.setattr(order_module, "rank_and_world", lambda rank=rank: (rank, world))
            order = build()
            by_rank.append(plain(list(order)))
            assert len(order) == len(by_rank[-1])
        together = [sum((batch[1] for batch in batches), []) for batches in zip(*by_rank, strict=True)]
        assert sum(together, []) == sum((batch[1] for batch in expected), [])
        if build is make:
            assert together == [batch[1] for batch in expected]
        assert all(len(batch[1]) > 0 for batches in by_rank for batch in batches)


def test_share_is_even() -> None:
    for count in range(20):
        spans = [share(3, 3 + count, rank, 4) for rank in range(4)]
        assert spans[0][0] == 3 and spans[-1][1] == 3 + count
        sizes = [b - a for a, b in spans]
        assert max(sizes) - min(sizes) <= 1


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no batch to train on: 3 training samples, batch_size=5"):
        make(count=3, drop_last=True)
    with pytest.raises(ValueError, match="epoch >= 0 and batches_done >= 0, got 0 and -1"):
        make().set_position(0, -1)
    monkeypatch.setattr(order_module, "rank_and_world", lambda: (0, 4))
    with pytest.raises(ValueError, match="a batch of 3 samples cannot be shared by 4 processes; use drop_last=true"):
        next(iter(make()))
    with pytest.raises(ValueError, match="2 samples cannot be shared by 4 processes"):
        next(iter(StoredOrder(torch.arange(2), 4)))
