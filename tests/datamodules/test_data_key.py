"""The key of a part changes with whatever changes its pixels, labels or samples, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import data_key
from datamodules.arrays import ArrayData
from datamodules.augmentation.albumentations_transforms import FileAugment
from datamodules.augmentation.augment import BatchAugment
from datamodules.labels.symmetric import Symmetric
from datamodules.sources.folder import Folder

PARTS = ("train", "train_eval", "val", "test")
TRAINED = {"train", "train_eval", "val"}


def keys_of(kind: Any, seed: int = 0, noise: Any = None, **keys: Any) -> dict[str, str]:
    data = kind(seed, **{"val_fraction": 0.2, "batch_size": 4, **keys})
    data.noise = noise
    data.setup()
    return {part: data.key(part) for part in PARTS}


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {part for part in PARTS if one[part] != other[part]}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (tmp_path / "set" / part / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((12, 12, 3), 20 * i, np.uint8)).save(tmp_path / "set" / part / name / f"{i}.png")
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"seed": 1}, {"train"}),
        ({"augmentations": 3}, {"train"}),
        ({"augment": BatchAugment(crop_padding=2)}, {"train"}),
        ({"augment": BatchAugment(crop_padding=1, contrast=0.1)}, {"train"}),
        ({"augment": None}, {"train"}),
        ({"split_seed": 1}, TRAINED),
        ({"val_fraction": 0.3}, TRAINED),
        ({"limit_train": 20}, {"train", "train_eval"}),
        ({"limit_test": 10}, {"test"}),
        ({"select_on": "test_best"}, TRAINED),
        ({"noise": Symmetric(rate=0.3)}, set(PARTS)),
        ({"num_workers": 2, "batch_size": 8, "eval_batch_size": 9, "drop_last": False}, set()),
        ({"worker_timeout_s": 9, "samples_per_class": 2}, set()),
    ],
)
def test_each_change_of_a_set_in_memory(tiny: type[ArrayData], keys: dict[str, Any], parts: set[str]) -> None:
    base = {"augment": BatchAugment(crop_padding=1)}
    one = keys_of(tiny, **base)
    assert len(set(one.values())) == 4 and keys_of(tiny, augment=BatchAugment(crop_padding=1)) == one
    assert changed(one, keys_of(tiny, **{**base, **keys})) == parts


def test_parts_that_show_the_same_have_the_same_key(tiny: type[ArrayData]) -> None:
    still = keys_of(tiny)
    assert still["train"] == still["train_eval"] and keys_of(tiny, seed=5, augmentations=2) == still
    best = keys_of(tiny, select_on="test_best")
    assert best["val"] == best["test"]


def test_other_images_labels_or_names(tiny: type[ArrayData]) -> None:
    found = [keys_of(tiny)]
    for number in range(3):

        class Other(tiny):  # type: ignore[valid-type, misc]
            which = number

            def arrays(self) -> Any:
                train, (images, labels), classes = super().arrays()
                images, labels = images.clone(), labels.clone()
                images[3, 0, 0, 0] ^= int(self.which == 0)
                labels[3] = 2 if self.which == 1 else labels[3]
                return train, (images, labels), (*classes[:3], "other") if self.which == 2 else classes

        Other.__module__, Other.__qualname__ = tiny.__module__, tiny.__qualname__
        found.append(keys_of(Other))
    assert len({keys["test"] for keys in found}) == 4


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"image_size": 9}, set(PARTS)),
        ({"resize_size": 12}, set(PARTS)),
        ({"interpolation": "bilinear"}, set(PARTS)),
        ({"on_unreadable": "substitute"}, set(PARTS)),
        ({"augment": FileAugment(min_scale=0.5)}, {"train"}),
        ({"augment": FileAugment(hue=0.1)}, {"train"}),
        ({"num_workers": 2, "max_pixels": 1000}, set()),
    ],
)
def test_each_change_of_files(tree: Path, keys: dict[str, Any], parts: set[str]) -> None:
    base = {"root": str(tree), "image_size": 8, "val_folder": None, "augment": FileAugment()}
    assert changed(keys_of(Folder, **base), keys_of(Folder, **{**base, **keys})) == parts


def test_the_place_of_files_says_nothing_and_their_content_all(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"image_size": 8, "val_folder": None}
    one = keys_of(Folder, root=str(tree), **keys)
    other = tree.with_name("elsewhere")
    shutil.copytree(tree, other)
    assert keys_of(Folder, root=str(other), **keys) == one
    Image.fromarray(np.full((12, 12, 3), 7, np.uint8)).save(other / "test" / "a" / "0.png")
    assert keys_of(Folder, root=str(other), **keys)["test"] != one["test"]
    monkeypatch.setattr(data_key, "_versions", lambda: {"pillow": "0"})
    assert changed(keys_of(Folder, root=str(tree), **keys), one) == set(PARTS)


def test_what_has_an_address_in_its_name_never_comes_again(tiny: type[ArrayData]) -> None:
    class Odd(BatchAugment):
        def __init__(self) -> None:
            super().__init__()
            self._lookup = object()

    kept = Odd(), Odd()
    assert changed(*(keys_of(tiny, augment=odd) for odd in kept)) == {"train"}


def test_use_does_not_change_the_key(tree: Path) -> None:
    data = Folder(0, root=str(tree), image_size=8, val_folder=None, augment=FileAugment(), batch_size=4)
    data.setup()
    before = data.key("train")
    list(data.train_dataloader())
    assert data.key("train") == before
