"""Sources in memory: images belong to their indices, batches depend on nothing but (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.arrays import ArrayData, check_images
from datamodules.augmentation.augment import BatchAugment
from datamodules.order.order import ShuffledOrder
from kernels.augment import to_float
from kernels.batch import Batch

KEYS = {"batch_size": 7, "eval_batch_size": 8, "val_fraction": 0.2}


def ready(data_class: type[ArrayData], seed: int = 0, **keys: Any) -> ArrayData:
    data = data_class(seed, **{**KEYS, **keys})
    data.setup()
    return data


def augmenting() -> BatchAugment:
    return BatchAugment(crop_padding=1, cutout_size=2, brightness=0.3, contrast=0.3)


def checksum(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def same(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    return all(
        torch.equal(a.image, b.image) and torch.equal(a.label, b.label) and torch.equal(a.index, b.index)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prepared", [False, True])
def test_index_names_the_image_over_two_shuffled_epochs(tiny: type[ArrayData], workers: int, prepared: bool) -> None:
    still = BatchAugment(crop_padding=0, flip_prob=0.0) if prepared else None
    data = ready(tiny, num_workers=workers, drop_last=False, augment=still)
    images, _ = data.arrays()[0]
    position = {checksum(to_float(image)): i for i, image in enumerate(images)}
    loader, orders = data.train_dataloader(), []
    for _ in range(2):
        seen: list[int] = []
        for batch in loader:
            assert [position[checksum(image)] for image in batch.image] == batch.index.tolist()
            assert torch.equal(batch.label, batch.index % 4)
            seen += batch.index.tolist()
        assert sorted(seen) == data.train_index.tolist() and len(seen) == 48
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("part", ["val", "test"])
def test_evaluation_is_in_stored_order_without_augmentation(tiny: type[ArrayData], part: str) -> None:
    data = ready(tiny, augment=augmenting())
    images = data.arrays()[0 if part == "val" else 1][0]
    loader = data.val_dataloader() if part == "val" else data.test_dataloader()
    batches: list[Batch] = list(loader)  # type: ignore[arg-type]
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(index, data.val_index if part == "val" else torch.arange(20))
    assert torch.equal(torch.cat([batch.image for batch in batches]), to_float(images[index]))


def test_same_bits_for_any_number_of_workers(tiny: type[ArrayData]) -> None:
    def epochs(workers: int) -> list[Batch]:
        loader = ready(tiny, augment=augmenting(), num_workers=workers).train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    assert same(epochs(0), epochs(2))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_yields_the_remaining_batches(tiny: type[ArrayData], workers: int) -> None:
    data = ready(tiny, augment=augmenting())
    loader = data.train_dataloader()
    whole = [batch for _ in range(3) for batch in loader]
    steps = data.steps_per_epoch
    assert steps == 6
    for done in (0, 4, 6, 11, 12) if workers == 0 else (5, 6):
        resumed = ready(tiny, augment=augmenting(), num_workers=workers)
        resumed.set_position(0, done)
        loader, rest = resumed.train_dataloader(), []
        while len(rest) < len(whole) - done:
            rest += list(loader)
        assert same(rest, whole[done:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_bits_on_the_device(tiny: type[ArrayData]) -> None:
    here, there = ready(tiny, augment=augmenting()), ready(tiny, augment=augmenting())
    there.device = torch.device("cuda", 0)
    moved = list(there.train_dataloader())
    assert all(tensor.is_cuda for batch in moved for tensor in (batch.image, batch.label, batch.index))
    assert same(list(here.train_dataloader()), [batch.to("cpu") for batch in moved])
    tests = [batch.to("cpu") for batch in there.test_dataloader()]
    assert same(list(here.test_dataloader()), tests)


@pytest.mark.parametrize("workers, device, pinned", [(2, True, True), (0, True, False), (2, False, False)])
def test_workers_pin_memory_where_there_is_a_device(
    tiny: type[ArrayData], monkeypatch: pytest.MonkeyPatch, workers: int, device: bool, pinned: bool
) -> None:
    data = ready(tiny, num_workers=workers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert loader.pin_memory == pinned  # type: ignore[union-attr]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_of_workers_are_pinned_and_equal_on_the_device(tiny: type[ArrayData]) -> None:
    data = ready(tiny, num_workers=2)
    batches = list(data.test_dataloader())
    assert all(tensor.is_pinned() for batch in batches for tensor in (batch.image, batch.label, batch.index))
    moved = [batch.to("cuda", non_blocking=True) for batch in batches]
    assert all(batch.image.is_cuda for batch in moved) and same(batches, [batch.to("cpu") for batch in moved])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_says_what_its_augmentation_depends_on(tiny: type[ArrayData], workers: int) -> None:
    """Replayed from (seed, epoch, index, view) alone, with one sample three times in an epoch."""
    data = ready(tiny, 3, augment=augmenting(), num_workers=workers, drop_last=False)
    data.order = ShuffledOrder(torch.tensor([5, 9, 5, 11, 5]), 2, seed=3, drop_last=False)
    replay, visits = augmenting(), []
    prepared = replay.prepare(data.arrays()[0][0])
    for batch in data.train_dataloader():
        assert batch.view is not None
        again = replay(prepared, batch.index, batch.view, seed=3, epoch=0, size=(8, 8))
        assert torch.equal(again, batch.image)
        visits += list(zip(batch.index.tolist(), batch.view.tolist(), strict=True))
    assert sorted(visits) == [(5, 0), (5, 1), (5, 2), (9, 0), (11, 0)]


def test_training_samples_as_stored(tiny: type[ArrayData]) -> None:
    data = ready(tiny, augment=augmenting(), limit_train=30)
    images, labels = data.arrays()[0]
    for _ in range(2):  # the order of training is not moved on
        batches = list(data.train_eval_dataloader())
        index = torch.cat([batch.index for batch in batches])
        assert torch.equal(index, data.train_index) and len(index) == 30
        assert torch.equal(torch.cat([batch.image for batch in batches]), to_float(images[index]))
        assert torch.equal(torch.cat([batch.label for batch in batches]), labels[index])
    assert (data.order.epoch, data.order.start) == (0, 0)


def test_augmentation_does_not_depend_on_the_batch_size(tiny: type[ArrayData]) -> None:
    def by_index(batch_size: int) -> dict[int, Tensor]:
        data = ready(tiny, augment=augmenting(), batch_size=batch_size, drop_last=False)
        return {int(i): image for b in data.train_dataloader() for i, image in zip(b.index, b.image, strict=True)}

    one, other = by_index(1), by_index(48)
    assert one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(tiny: type[ArrayData], workers: int) -> None:
    data = ready(tiny, augment=augmenting(), num_workers=workers)
    before = torch.get_rng_state()
    for _ in range(2):
        list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_changes_order_and_augmentation_but_not_the_split(tiny: type[ArrayData]) -> None:
    one, other = ready(tiny, 0, augment=augmenting()), ready(tiny, 1, augment=augmenting())
    assert one.split_record() == other.split_record() and one.manifest == other.manifest
    first, second = next(iter(one.train_dataloader())), next(iter(other.train_dataloader()))
    assert not torch.equal(first.index, second.index)


def test_split_record_and_facts(tiny: type[ArrayData]) -> None:
    data = ready(tiny, limit_train=20, limit_test=8)
    record = data.split_record()
    assert record["counts"] == {"train": 20, "val": 12, "test": 8} and record["num_train_full"] == data.num_train == 60
    assert record["val_fraction"] == 0.2 and len(record["sha256"]["val"]) == 64
    assert not set(data.train_index.tolist()) & set(data.val_index.tolist())
    assert torch.bincount(data.train_labels[data.train_index]).tolist() == [5, 5, 5, 5]
    assert (data.num_classes, data.image_size, data.channels, data.steps_per_epoch) == (4, 8, 3, 2)
    assert data.preprocessing()["image_size"] == 8 and data.preprocessing()["range"] == [0.0, 1.0]
    picture = data.test_picture(3)
    assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8
    assert torch.equal(torch.from_numpy(picture).permute(2, 0, 1), data.arrays()[1][0][3])


def test_without_validation_part(tiny: type[ArrayData]) -> None:
    assert ready(tiny, val_fraction=0.0).val_dataloader() == []


def test_manifest_sees_every_change(tiny: type[ArrayData]) -> None:
    class Other(tiny):  # type: ignore[misc, valid-type]
        change = ""

        def arrays(self) -> Any:
            (train, train_labels), (test, test_labels), classes = super().arrays()
            changed = {"train": train, "test": test, "label": test_labels}.get(self.change)
            if changed is not None:
                changed.view(-1)[5] = 3
            return (train, train_labels), (test, test_labels), classes if self.change != "name" else ("x", *classes[1:])

    seen = set()
    for change in ("", "train", "test", "label", "name"):
        Other.change = change
        seen.add(ready(Other).manifest)
    assert len(seen) == 5 and ready(tiny).manifest in seen
    assert ready(tiny, augment=augmenting()).manifest == ready(tiny).manifest


def test_mutating_a_batch_does_not_reach_the_set(tiny: type[ArrayData]) -> None:
    data = ready(tiny)
    for batch in data.test_dataloader():
        for tensor in (batch.image, batch.label, batch.index):
            tensor.zero_()
    batch = next(iter(data.test_dataloader()))
    assert batch.index.tolist() == list(range(8)) and batch.label.tolist() == [0, 1, 2, 3] * 2 and batch.image.any()


@pytest.mark.parametrize("label", [4, -1])
def test_label_out_of_range(tiny: type[ArrayData], label: int) -> None:
    class Wrong(tiny):  # type: ignore[misc, valid-type]
        def arrays(self) -> Any:
            train, test, classes = super().arrays()
            train[1][17] = label
            return train, test, classes

    with pytest.raises(ValueError, match=rf"train label {label} at index 17 is outside 0..3 \(4 classes\)"):
        ready(Wrong)


@pytest.mark.parametrize(
    "images, error, message",
    [
        (torch.zeros(5, 3, 8, 8), TypeError, "test images are torch.float32; give uint8"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), ValueError, r"test images have shape \[5, 1, 8, 8\]"),
        (torch.zeros(5, 8, 8, dtype=torch.uint8), ValueError, r"give \[N, 3, H, W\]"),
        (torch.zeros(5, 3, 8, 9, dtype=torch.uint8), ValueError, "8x9; arrays must hold square images"),
        (torch.zeros(5, 3, 9, 9, dtype=torch.uint8), ValueError, "test images are 9x9 but the training images are 8x8"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), ValueError, "4 test images but 5 labels"),
    ],
)
def test_bad_images(images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_images(images, torch.zeros(5, dtype=torch.int64), "test", (8, 8))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"batch_size": 0}, r"batch_size=0 is out of range; allowed: batch_size >= 1 \(int\)"),
        ({"eval_batch_size": 0}, r"eval_batch_size=0 is out of range; allowed: eval_batch_size >= 1 \(int\)"),
        ({"num_workers": -1}, r"num_workers=-1 is out of range; allowed: 0 <= num_workers <= 1024 \(int\)"),
        ({"val_fraction": 1.2}, "val_fraction=1.2 is out of range; allowed: 0 <= val_fraction < 1"),
        ({"batch_size": 100}, "no batch to train on: 48 training samples, batch_size=100"),
        ({"limit_train": 49}, "data.limit_train=49, but it must be between 1 and the 48"),
    ],
)
def test_bad_settings(tiny: type[ArrayData], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = ready(tiny, **keys).order


def test_wrong_kind_of_augment(tiny: type[ArrayData]) -> None:
    with pytest.raises(TypeError, match="data.augment of Tiny must be a datamodules.*augment.BatchAugment, got dict"):
        tiny(0, augment={"crop_padding": 4})  # type: ignore[arg-type]
