"""Label sets that differ between the parts: which classes are held out, how labels are numbered, what is recorded."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.manifest import manifest_difference
from datamodules.order.split import hold_out_classes
from datamodules.sources.grocery import Grocery, GroceryDisjoint

NAMES = tuple("abcdefghij")
TEST_NAMES = ("x", "y", "z")


class Apart(ArrayData):
    """10 training classes with 3 to 12 images, 3 other test classes; the class is the value of the pixels."""

    sizes = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        self.test_classes = TEST_NAMES
        labels = torch.arange(10).repeat_interleave(torch.tensor(self.sizes))
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
        test = torch.arange(12) % 3
        return (self.pictures(labels), labels), (self.pictures(test + 100), test), NAMES

    @staticmethod
    def pictures(values: Tensor) -> Tensor:
        return values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


def ready(kind: type[ArrayData] = Apart, **keys: Any) -> Any:
    data = kind(0, **{"batch_size": 8, "eval_batch_size": 16, **keys})
    data.setup()
    return data


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.01, 2), (0.1, 2), (0.34, 3), (0.5, 5), (0.9, 9)])
def test_classes_are_held_out_whole(fraction: float, count: int) -> None:
    data = ready(val_fraction=fraction, drop_last=False)
    assert len(data.val_classes) == count and data.num_classes == 10 - count
    assert sorted(data.classes + data.val_classes) == list(NAMES)
    assert list(data.classes) == sorted(data.classes) and list(data.val_classes) == sorted(data.val_classes)
    assert data.test_classes == TEST_NAMES and data.num_train == sum(Apart.sizes)
    assert sorted([*data.train_index.tolist(), *data.val_index.tolist()]) == list(range(data.num_train))
    assert data.split_record()["classes"] == {"train": 10 - count, "val": count, "test": 3}
    if count == 0:
        assert data.val_dataloader() == []


def test_labels_of_a_part_index_its_names() -> None:
    """The pixels say which class an image is of, whatever number it goes by in its part."""
    data = ready(val_fraction=0.3, drop_last=False)
    loaders = {
        "train": data.train_dataloader(),
        "train_eval": data.train_eval_dataloader(),
        "val": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    stored = {"train": data.train_images, "test": data.test_images}
    for part, loader in loaders.items():
        names, seen = data.classes_of(part), []
        for batch in loader:
            assert batch.label.min() >= 0 and int(batch.label.max()) < len(names)
            values = (batch.image[:, 0, 0, 0] * 255).round().long().tolist()
            expected = [TEST_NAMES[v - 100] if v >= 100 else NAMES[v] for v in values]
            assert [names[label] for label in batch.label.tolist()] == expected
            source = stored["test" if part == "test" else "train"]
            assert source[batch.index][:, 0, 0, 0].tolist() == values, "index is the position in the full set"
            assert torch.equal(data.labels_of(part)[batch.index], batch.label)
            seen += batch.label.tolist()
        assert set(seen) == set(range(len(names))), "every name has a sample, so a proxy for each is trained"


def test_held_out_samples_have_no_training_label() -> None:
    data = ready(val_fraction=0.3)
    assert (data.train_labels[data.val_index] == -1).all() and (data.train_labels[data.train_index] >= 0).all()
    assert torch.equal(data.stored_labels, data.arrays()[0][1])


def test_the_choice_is_a_function_of_split_seed() -> None:
    first = ready(val_fraction=0.3)
    assert ready(val_fraction=0.3, batch_size=4).val_classes == first.val_classes
    assert len({ready(val_fraction=0.3, split_seed=seed).val_classes for seed in range(8)}) > 4
    chosen = [name for seed in range(400) for name in ready(val_fraction=0.3, split_seed=seed).val_classes]
    assert all(80 < chosen.count(name) < 160 for name in NAMES), "every class about 120 times of 400"


def test_split_again_with_plain_loops() -> None:
    labels = torch.tensor([2, 0, 4, 4, 1, 3, 2, 0])
    split = hold_out_classes(labels, 5, 0.4, 1)
    kept, held = split.kept.tolist(), split.held.tolist()
    assert len(held) == 2 and sorted(kept + held) == [0, 1, 2, 3, 4]
    for position, label in enumerate(labels.tolist()):
        own, other = (split.train_labels, split.val_labels) if label in kept else (split.val_labels, split.train_labels)
        assert (kept if label in kept else held)[int(own[position])] == label and int(other[position]) == -1
    assert split.train_index.tolist() == [i for i, label in enumerate(labels.tolist()) if label in kept]
    assert split.names("vwxyz") == (tuple("vwxyz"[c] for c in kept), tuple("vwxyz"[c] for c in held))


def test_limits_and_balanced_batches() -> None:
    data = ready(val_fraction=0.3, limit_train=30, limit_test=6, samples_per_class=2)
    assert len(data.train_index) == 30 and set(data.train_index.tolist()).isdisjoint(data.val_index.tolist())
    assert data.steps_per_epoch == 30 // 8
    for batch in data.train_dataloader():
        assert torch.bincount(batch.label, minlength=7).sort().values.tolist() == [0, 0, 0, 2, 2, 2, 2]
        assert set(batch.index.tolist()) <= set(data.train_index.tolist())
    assert torch.bincount(data.test_labels[data.test_index]).tolist() == [2, 2, 2]


def test_manifest_is_that_of_the_data_not_of_the_split() -> None:
    one, other = ready(val_fraction=0.3), ready(val_fraction=0.0)
    assert one.manifest_parts() == other.manifest_parts() and one.manifest == other.manifest
    assert set(one.manifest_parts()) == {"classes", "train", "test", "test_classes"}
    assert one.manifest_parts()["classes"] == {
        "count": 10,
        "sha256": hashlib.sha256("\0".join(NAMES).encode()).hexdigest(),
    }
    assert one.split_record() != other.split_record()

    class Renamed(Apart):
        def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
            found = super().arrays()
            self.test_classes = ("x", "y", "w")
            return found

    changed = ready(Renamed).manifest_parts()
    difference = "test_classes: 3 before and now, but other names, or another order"
    assert manifest_difference(one.manifest_parts(), changed) == [difference]


def test_roles_are_in_the_manifest() -> None:
    class Roles(Apart):
        flipped = False

        def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
            self.test_is_query = (torch.arange(12) < 6) ^ self.flipped
            return super().arrays()

    class Flipped(Roles):
        flipped = True

    assert ready().test_is_query is None
    one, other = ready(Roles), ready(Flipped)
    assert one.test_is_query.dtype == torch.bool and len(one.test_is_query) == len(one.test_labels)
    (line,) = manifest_difference(one.manifest_parts(), other.manifest_parts())
    assert line.startswith("test_is_query: 12 before and now")


@pytest.mark.parametrize("kind", ["apart", "tiny"])
def test_validation_on_the_test_part(kind: str, tiny: type[ArrayData]) -> None:
    chosen = Apart if kind == "apart" else tiny
    data, usual = ready(chosen, select_on="test_best", val_fraction=0.3), ready(chosen, val_fraction=0.3)
    assert len(data.train_index) == data.num_train and data.classes == chosen(0).arrays()[2], "nothing is held out"
    assert data.classes_of("val") == data.test_classes and torch.equal(data.val_index, data.test_index)
    for one, other in zip(data.val_dataloader(), data.test_dataloader(), strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.label, other.label)
    assert torch.equal(data.labels_of("val"), data.test_labels)
    assert data.manifest_parts() == usual.manifest_parts() and data.split_record()["val_fraction"] is None
    assert len(ready(chosen, select_on="test_best", limit_test=6).val_index) == 6
    assert data.val_is_query is None


def test_roles_of_validation_are_those_of_the_test_part() -> None:
    class Roles(Apart):
        test_is_query = torch.arange(12) < 6

    assert ready(Roles).val_is_query is None
    assert ready(Roles, select_on="test_best").val_is_query.tolist() == [True] * 6 + [False] * 6


def test_sets_with_one_label_set_are_as_before(tiny: type[ArrayData]) -> None:
    data = ready(tiny, val_fraction=0.2)
    assert data.classes_of("train") == data.classes_of("val") == data.classes_of("test") == tuple("abcd")
    assert set(data.manifest_parts()) == {"classes", "train", "test"} and "classes" not in data.split_record()
    assert torch.equal(data.train_labels, torch.arange(60) % 4), "nothing is renumbered"
    assert torch.equal(data.labels_of("val"), data.train_labels)
    assert torch.bincount(data.train_labels[data.val_index]).tolist() == [3] * 4, "stratified"


def test_embedded_set() -> None:
    data, whole = ready(GroceryDisjoint, val_fraction=0.2), ready(Grocery)
    assert (data.num_classes, len(data.val_classes), len(data.test_classes)) == (16, 4, 20)
    assert tuple(sorted(data.classes + data.val_classes)) == tuple(sorted(whole.classes[:20]))
    assert data.test_classes == whole.classes[20:] and data.image_size == 48
    assert torch.bincount(data.stored_labels).tolist() == torch.bincount(data.test_labels).tolist() == [50] * 20
    for label in (0, 7, 19):
        for parts, images, labels in (
            (label, data.train_images, data.stored_labels),
            (20 + label, data.test_images, data.test_labels),
        ):
            both = [whole.train_images[whole.train_labels == parts], whole.test_images[whole.test_labels == parts]]
            assert torch.equal(images[labels == label], torch.cat(both))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction=1.0 is out of range; allowed: 0 <= val_fraction < 1"),
        ({"val_fraction": 0.99}, "val_fraction=0.99 holds out 10 of 10 training classes, which leaves none"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1 is out of range; allowed: 0 <= val_fraction < 1"),
        ({"select_on": "test"}, "data.select_on is 'test'; choose val or test_best"),
        ({"val_fraction": 0.5, "samples_per_class": 1}, "needs 8 classes, and the training samples have 5"),
    ],
)
def test_errors(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = ready(**keys).order


def test_labels_are_checked_against_the_names_of_their_part() -> None:
    class Wrong(Apart):
        def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
            train, (images, labels), names = super().arrays()
            return train, (images, labels + 1), names  # 3 would be a class of training

    with pytest.raises(ValueError, match=r"test label 3 at index 2 is outside 0..2 \(3 classes\)"):
        ready(Wrong)
