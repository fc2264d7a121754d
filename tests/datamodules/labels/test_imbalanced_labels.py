"""Imbalanced sets: which parts are thinned out, what is recorded, and how they go with limits, noise and held-out
classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.arrays import ArrayData
from datamodules.base import ImageData
from datamodules.labels.symmetric import Symmetric
from datamodules.manifest import manifest_difference
from datamodules.order.split import hold_out
from datamodules.sources.folder import Folder
from datamodules.sources.grocery import Grocery, GroceryDisjoint

LONG: dict[str, Any] = {"imbalance": "exponential", "imbalance_ratio": 10}


def ready(kind: type[ImageData], *, noise: Any = None, **keys: Any) -> Any:
    data = kind(0, **{"batch_size": 4, "eval_batch_size": 50, "drop_last": False, **keys})
    data.noise = noise
    data.setup()
    return data


def sizes(data: Any, index: Any) -> list[int]:
    """Counted label by label."""
    return [sum(1 for position in index.tolist() if data.stored_labels[position] == c) for c in range(data.num_classes)]


def test_training_is_thinned_out_and_the_test_part_is_not(tiny: type[ArrayData]) -> None:
    whole, data = ready(tiny, val_fraction=0.0), ready(tiny, val_fraction=0.0, **LONG)
    assert sizes(data, data.train_index) == [15, 6, 3, 1]  # 15 * 10 ** -(c / 3) is 15, 6.96, 3.23, 1.5
    assert torch.equal(data.test_index, whole.test_index) and data.num_train == 60, (
        "positions are those of the full set"
    )
    batches = list(data.train_dataloader())
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(index.sort().values, data.train_index) and index.max() > len(index)
    for batch in batches:
        assert torch.equal(batch.label, batch.index % 4)
    assert data.split_record()["imbalance"] == {
        "profile": "exponential", "ratio": 10, "counts": {"kept": [15, 6, 3, 1], "train": [15, 6, 3, 1], "val": [0] * 4}
    }  # fmt: skip
    assert "imbalance" not in whole.split_record() and "imbalance" not in whole.manifest_parts()
    assert sizes(ready(tiny, val_fraction=0.0, imbalance="step", imbalance_ratio=5), data.train_index)[0] == 15


def test_validation_is_held_out_from_what_is_left_by_the_same_rule(tiny: type[ArrayData]) -> None:
    data = ready(tiny, val_fraction=0.2, split_seed=2, **LONG)
    kept = torch.cat([data.train_index, data.val_index]).sort().values
    assert sizes(data, kept) == [15, 6, 3, 1] and len(data.val_index) == 5
    train, val = hold_out(data.stored_labels, 0.2, 2, index=kept)
    assert torch.equal(train, data.train_index) and torch.equal(val, data.val_index)
    assert sizes(data, data.val_index) == [3, 1, 1, 0], "in proportion; the last class keeps its sample"
    limited = ready(tiny, val_fraction=0.2, split_seed=2, limit_train=10, **LONG)
    assert torch.equal(limited.val_index, val) and bool(torch.isin(limited.train_index, train).all())
    counts = limited.split_record()["imbalance"]["counts"]
    assert counts["kept"] == [15, 6, 3, 1] and sum(counts["train"]) == 10 and counts["val"] == [3, 1, 1, 0]


def test_all_is_kept_for_training_where_validation_is_another_part(tiny: type[ArrayData], tmp_path: Path) -> None:
    data = ready(tiny, select_on="test_best", **LONG)
    assert sizes(data, data.train_index) == [15, 6, 3, 1] and len(data.val_index) == 20
    assert set(data.split_record()["imbalance"]["counts"]) == {"kept", "train"}
    for part, count in (("train", 8), ("val", 3), ("test", 3)):
        for number in range(2 * count):
            path = tmp_path / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(path)
    keys = {"root": str(tmp_path), "image_size": 8, "imbalance": "step", "imbalance_ratio": 4}
    files = ready(Folder, num_workers=2, **keys)
    assert sizes(files, files.train_index) == [8, 2] and len(files.val_index) == len(files.test_index) == 6
    assert sorted(torch.cat([b.index for b in files.train_dataloader()]).tolist()) == files.train_index.tolist()


def test_held_out_classes_come_first() -> None:
    """Validation keeps its classes whole, and the formula is that of the classes that train."""
    whole = ready(GroceryDisjoint)
    data = ready(GroceryDisjoint, imbalance="exponential", imbalance_ratio=5)
    assert data.classes == whole.classes and torch.equal(data.val_index, whole.val_index)
    each, classes = 50, data.num_classes
    expected = [int(each * 5 ** (-c / (classes - 1)) + 1e-9) for c in range(classes)]
    assert torch.bincount(data.train_labels[data.train_index]).tolist() == expected
    assert data.split_record()["imbalance"]["counts"] == {"kept": expected, "train": expected}


def test_manifest_and_keys_name_it(tiny: type[ArrayData]) -> None:
    plain, one = ready(tiny), ready(tiny, **LONG)
    assert one.manifest_parts() == {**plain.manifest_parts(), "imbalance": one.manifest_parts()["imbalance"]}
    assert manifest_difference(plain.manifest_parts(), one.manifest_parts()) == ["imbalance: absent before, 25 now"]
    assert ready(tiny, val_fraction=0.3, limit_train=9, **LONG).manifest == one.manifest == ready(tiny, **LONG).manifest
    other = ready(tiny, split_seed=1, **LONG)
    assert manifest_difference(one.manifest_parts(), other.manifest_parts()) == [
        "imbalance: 25 before and now, but other samples"
    ]
    fewer = ready(tiny, imbalance="exponential", imbalance_ratio=5)
    for part in ("train", "train_eval", "val"):
        assert len({data.key(part) for data in (plain, one, other, fewer)}) == 4
    assert one.key("train") == ready(tiny, **LONG).key("train")


def test_noise_is_put_into_what_is_kept_and_changes_nothing_else(tiny: type[ArrayData]) -> None:
    clean, noisy = ready(tiny, **LONG), ready(tiny, noise=Symmetric(rate=0.5), **LONG)
    without = ready(tiny, noise=Symmetric(rate=0.5))
    assert torch.equal(clean.train_index, noisy.train_index) and torch.equal(clean.val_index, noisy.val_index)
    assert torch.equal(noisy.train_labels, without.train_labels), "a wrong label depends on the position alone"
    assert noisy.split_record()["imbalance"] == clean.split_record()["imbalance"], "classes are those before noise"
    assert {"imbalance", "noise"} <= set(noisy.manifest_parts())
    for batch in noisy.train_dataloader():
        assert torch.equal(batch.clean_label, batch.index % 4)


def test_balanced_batches_of_an_imbalanced_set(tiny: type[ArrayData]) -> None:
    data = ready(tiny, samples_per_class=2, batch_size=8, **LONG)
    for batch in data.train_dataloader():
        assert batch.label.bincount(minlength=4).tolist() == [2, 2, 2, 2]


def test_errors(tiny: type[ArrayData]) -> None:
    with pytest.raises(ValueError, match="data.imbalance=step needs data.imbalance_ratio, the size of the largest"):
        tiny(0, imbalance="step")
    with pytest.raises(ValueError, match="data.imbalance_ratio=10 does nothing by itself; set data.imbalance="):
        tiny(0, imbalance_ratio=10)
    with pytest.raises(ValueError, match="data.imbalance is 'linear'; choose exponential, step or null"):
        tiny(0, imbalance="linear", imbalance_ratio=10)
    with pytest.raises(ValueError, match="imbalance_ratio=0.5 is out of range; allowed: imbalance_ratio >= 1"):
        tiny(0, imbalance="step", imbalance_ratio=0.5)
    with pytest.raises(ValueError, match="imbalance_ratio=100 leaves no sample of class .* largest class has 25 of 25"):
        ready(Grocery, imbalance="exponential", imbalance_ratio=100)
