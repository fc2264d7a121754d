"""Batches of P classes with K samples each: what an epoch holds, exact positions, shares of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.arrays import ArrayData
from datamodules.augmentation.augment import BatchAugment
from datamodules.order import order as order_module
from datamodules.order.class_order import ClassBalancedOrder, consecutive
from datamodules.order.order import Keys

SIZES = (1, 2, 3, 4, 5, 9, 16, 30)  # samples of each class; K is 4


def make(sizes: tuple[int, ...] = SIZES, batch_size: int = 12, k: int = 4, seed: int = 0, **keys: bool) -> tuple:
    """The order over scattered positions, and the class of each position."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]
    index = 1000 + 3 * torch.arange(len(labels))
    return ClassBalancedOrder(index, labels, batch_size, k, seed, **keys), dict(
        zip(index.tolist(), labels.tolist(), strict=True)
    )


def plain(batches: list[Keys]) -> list[tuple[int, list[int], list[int]]]:
    return [(keys.epoch, keys.index.tolist(), keys.view.tolist()) for keys in batches]


def even(counts: list[int]) -> bool:
    return max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("sizes", "batch_size", "k"), [(SIZES, 12, 4), (SIZES, 32, 4), (SIZES, 15, 5), ((6,) * 11, 8, 2)]
)
def test_every_batch_and_every_epoch(sizes: tuple[int, ...], batch_size: int, k: int) -> None:
    order, class_of = make(sizes, batch_size, k)
    for epoch in range(3):
        batches = list(order.keys(epoch))
        assert len(batches) == len(order) == sum(sizes) // batch_size
        in_epoch: Counter[int] = Counter()
        uses: Counter[int] = Counter()
        for keys in batches:
            assert keys.epoch == epoch and len(keys.index) == batch_size
            rows = keys.index.reshape(-1, k)
            classes = [{class_of[i] for i in row.tolist()} for row in rows]
            assert all(len(one) == 1 for one in classes), "K samples of a class stand together"
            (chosen,) = {tuple(next(iter(one)) for one in classes)}
            assert len(set(chosen)) == batch_size // k, "no class twice in a batch"
            for label, row in zip(chosen, rows, strict=True):
                times = Counter(row.tolist())
                assert len(times) == min(k, sizes[label]) and even(list(times.values()))
                in_epoch[label] += 1
            uses.update(keys.index.tolist())
        assert even([in_epoch[label] for label in range(len(sizes))])
        for label in range(len(sizes)):
            assert even([uses[i] for i, own in class_of.items() if own == label])
        views: dict[int, list[int]] = {}
        for keys in batches:
            for i, view in zip(keys.index.tolist(), keys.view.tolist(), strict=True):
                views.setdefault(i, []).append(view)
        assert all(found == list(range(len(found))) for found in views.values()), "each visit has its own view"


def test_over_many_epochs_the_samples_of_a_class_are_used_alike() -> None:
    order, class_of = make((5, 7, 20), 8, 4)
    uses = Counter(i for epoch in range(400) for keys in order.keys(epoch) for i in keys.index.tolist())
    for label, size in enumerate((5, 7, 20)):
        found = np.array([uses[i] for i, own in class_of.items() if own == label])
        expected = 400 * len(order) * 8 / 3 / size
        assert np.abs(found / expected - 1).max() < 0.2 and len(found) == size


def test_companions_change_within_an_epoch() -> None:
    """Each round has its own permutation: one for all would make the same pairs and the same classes meet again."""
    order, class_of = make((4, 60), 4, 2)
    rows = [tuple(sorted(row)) for keys in order for row in keys.index.reshape(-1, 2).tolist()]
    assert len({row for row in rows if class_of[row[0]] == 0}) >= 5, "of 6 pairs, in 16 draws"
    order, class_of = make((10,) * 6, 3, 1)
    assert len({frozenset(class_of[i] for i in keys.index.tolist()) for keys in order}) >= 8, "of 20, in 20 draws"


def test_epochs_and_seeds_differ_and_repeat() -> None:
    order, _ = make()
    first, second = plain(list(order.keys(0))), plain(list(order.keys(1)))
    assert [b[1] for b in first] != [b[1] for b in second]
    assert plain(list(make()[0])) == first
    assert plain(list(make(seed=1)[0])) != first


def test_order_of_index_does_not_matter_to_a_class() -> None:
    """The draw of a sample is keyed by its position in the full set: leaving another class out keeps its order."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    whole = ClassBalancedOrder(torch.arange(9), labels, 3, 3, 0)
    found = {tuple(sorted(keys.index.tolist())) for keys in whole}
    assert found == {(0, 3, 6), (1, 4, 7), (2, 5, 8)}
    one = next(keys.index.tolist() for keys in ClassBalancedOrder(torch.arange(9), labels, 3, 3, 5) if 1 in keys.index)
    kept = torch.tensor([1, 2, 4, 5, 7, 8])
    two = next(keys.index.tolist() for keys in ClassBalancedOrder(kept, labels[kept], 3, 3, 5) if 1 in keys.index)
    assert one == two


def test_every_position_continues_exactly() -> None:
    whole, _ = make()
    expected = plain([keys for epoch in range(3) for keys in whole.keys(epoch)])
    per_epoch = len(whole)
    for done in range(3 * per_epoch):
        for epoch, batches in ((0, done), divmod(done, per_epoch)):
            resumed, _ = make()
            resumed.set_position(epoch, batches)
            rest = [*resumed, *(keys for later in range(resumed.epoch + 1, 3) for keys in resumed.keys(later))]
            assert plain(rest) == expected[done:]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_every_batch_consecutively(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = plain(list(make()[0]))
    by_rank = []
    for rank in range(world):
        monkeypatch.setattr(order_module, "rank_and_world", lambda rank=rank: (rank, world))
        by_rank.append(plain(list(make()[0])))
        assert [len(batch[1]) for batch in by_rank[-1]] == [(rank + 1) * 12 // world - rank * 12 // world] * len(alone)
    for column in (1, 2):
        together = [sum((batch[column] for batch in batches), []) for batches in zip(*by_rank, strict=True)]
        assert together == [batch[column] for batch in alone]


def test_rounding_of_the_number_of_batches() -> None:
    down, up = make(drop_last=True)[0], make(drop_last=False)[0]
    assert (len(down), len(up)) == (70 // 12, 70 // 12 + 1)
    assert [len(keys.index) for keys in up] == [12] * 6 and up.samples_of(5) == 12


def test_one_sample_of_every_class_and_one_class_of_many() -> None:
    labels = torch.arange(6).repeat(2)
    for keys in ClassBalancedOrder(torch.arange(12), labels, 6, 1, 0):
        assert sorted(labels[torch.from_numpy(keys.index)].tolist()) == [0, 1, 2, 3, 4, 5]
    (keys,) = ClassBalancedOrder(torch.tensor([4]), torch.tensor([0]), 3, 3, 0, drop_last=False)
    assert keys.index.tolist() == [4, 4, 4] and keys.view.tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [4, 5, 7])
def test_rows_of_consecutive_permutations(count: int) -> None:
    generator = np.random.default_rng(count)
    rounds = [generator.permutation(count) for _ in range(9)]
    rows = consecutive(rounds, 4, 9 * count // 4)
    assert rows.shape == (9 * count // 4, 4) and all(len(set(row)) == 4 for row in rows.tolist())
    stream = rows.reshape(-1)
    for done in range(len(stream) // count):
        assert sorted(stream[done * count : (done + 1) * count]) == list(range(count)), "every round is used up"
    assert consecutive([], 0, 3).shape == (3, 0)


def test_in_a_data_module(tiny: type[ArrayData]) -> None:
    """Repeated samples of a class that is too small get different augmentations; workers and resume change nothing."""

    def ready(**keys: int) -> ArrayData:
        augment = BatchAugment(crop_padding=2, brightness=0.5)
        data = tiny(0, batch_size=8, val_fraction=0.9, samples_per_class=4, augment=augment, **keys)
        data.drop_last = False
        data.setup()
        return data

    data = ready()  # 6 training samples in 4 classes
    batches = [batch for _ in range(4) for batch in data.train_dataloader()]
    assert data.steps_per_epoch == 1 and len(batches) == 4
    for batch in batches:
        assert torch.bincount(batch.label, minlength=4).sort().values.tolist() == [0, 0, 4, 4]
        assert set(batch.index.tolist()) <= set(data.train_index.tolist())
        for index in batch.index.unique():
            images = batch.image[batch.index == index]
            assert len(images) >= 2 and len(images.flatten(1).unique(dim=0)) == len(images)
    resumed = ready(num_workers=2)
    resumed.set_position(2)
    for one, other in zip(resumed.train_dataloader(), batches[2:], strict=False):
        assert torch.equal(one.image, other.image) and torch.equal(one.index, other.index)


def test_errors(tiny: type[ArrayData], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="batch_size=14 is not a multiple of data.samples_per_class=4.*batch_size=16"):
        make(batch_size=14)
    with pytest.raises(ValueError, match="needs 9 classes, and the training samples have 8; .*at most 32"):
        make(batch_size=36)
    with pytest.raises(ValueError, match="no batch to train on: 3 training samples, batch_size=4"):
        make((1, 2), 4, 2)
    with pytest.raises(
        ValueError, match=r"samples_per_class=0 is out of range; allowed: samples_per_class >= 1 \(int\)"
    ):
        tiny(0, samples_per_class=0)
    with pytest.raises(ValueError, match="epoch >= 0 and batches_done >= 0, got -1 and 0"):
        make()[0].set_position(-1)
    monkeypatch.setattr(order_module, "rank_and_world", lambda: (0, 13))
    with pytest.raises(ValueError, match="a batch of 12 samples cannot be shared by 13 processes"):
        next(iter(make()[0]))
