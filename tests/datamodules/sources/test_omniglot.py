"""Omniglot: torchvision's layout, ink as ones, alphabets of the test apart from those of training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.augmentation.augment import BatchAugment
from datamodules.sources.omniglot import Omniglot

REAL = os.environ.get("DATA_ROOT", "")
TREE = {"images_background": {"Greek": 3, "Latin": 2}, "images_evaluation": {"Runes": 2}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """5 background and 2 evaluation characters with 4 drawings each: one column of ink, at another place in each."""
    number = 0
    for folder, alphabets in TREE.items():
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                where = tmp_path / "omniglot-py" / folder / alphabet / f"character{character:02d}"
                where.mkdir(parents=True)
                for drawing in range(4):
                    paper = np.full((105, 105), True)
                    paper[:, 3 * number % 105 : 3 * number % 105 + 3] = False
                    Image.fromarray(paper).save(where / f"{number:04d}_{drawing:02d}.png")
                    number += 1
    return tmp_path


def ready(root: Path, **keys: Any) -> Omniglot:
    data = Omniglot(0, root=str(root), **{"batch_size": 4, "image_size": 35, "verify": False, **keys})
    data.setup()
    return data


def test_layout_labels_and_ink(root: Path) -> None:
    data = ready(root, val_fraction=0.0)
    characters = [
        "Greek/character01",
        "Greek/character02",
        "Greek/character03",
        "Latin/character01",
        "Latin/character02",
    ]
    assert data.classes == tuple(characters) and data.test_classes == ("Runes/character01", "Runes/character02")
    assert data.train_labels.tolist() == [c for c in range(5) for _ in range(4)] and len(data.test_labels) == 8
    assert data.train_images.shape == (20, 3, 35, 35) and data.image_size == 35
    for position in range(20):  # 3 columns of 105 px are one of 35 px
        expected = torch.zeros(35, 35, dtype=torch.uint8)
        expected[:, position] = 255
        assert torch.equal(data.train_images[position], expected.expand(3, -1, -1)), "ink is 1, paper is 0"
    assert data.test_picture(0).shape == (35, 35, 3) and data.test_picture(0)[0, 20].tolist() == [255] * 3


def test_box_filter(root: Path) -> None:
    data = ready(root, image_size=21, val_fraction=0.0)
    image = data.train_images[1, 0].double()  # ink in columns 3-5 of 105, 5 of which make one of 21
    assert image[:, :2].round().unique(dim=0).tolist() == [[102, 51]] and image[:, 2:].abs().max() == 0
    assert ready(root, image_size=105, val_fraction=0.0).train_images.unique().tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_channels(root: Path, channels: int, padding: int) -> None:
    augment = BatchAugment(crop_padding=padding, flip_prob=0.0)
    data = ready(root, channels=channels, augment=augment, val_fraction=0.4)
    for batch in (
        next(iter(data.train_dataloader())),
        next(iter(data.val_dataloader())),
        next(iter(data.test_dataloader())),
    ):
        assert batch.image.shape[1:] == (channels, 35, 35)
        assert torch.equal(batch.image, batch.image[:, :1].expand(-1, channels, -1, -1))
    assert data.preprocessing()["channels"] == ("RGB" if channels == 3 else "grey")
    assert data.test_picture(3).shape == (35, 35, 3)
    assert (data.num_classes, len(data.val_classes)) == (3, 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 2}, "data.channels=2; choose 3, or 1 with backbone.in_channels=1"),
        ({"image_size": 0}, "image_size=0 is out of range; allowed: 1 <= image_size <= 16384"),
        ({"verify": True}, "holds 20 drawings of 5 characters, expected 20 of each of 964; complete it"),
    ],
)
def test_wrong_settings(root: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(root, **keys)


def test_wrong_trees(root: Path) -> None:
    (root / "omniglot-py" / "images_background" / "Latin" / "character03").mkdir()
    with pytest.raises(ValueError, match="character03 holds no drawing"):
        ready(root)
    with pytest.raises(FileNotFoundError, match="no folder .*images_background"):
        ready(root / "absent")


@pytest.mark.skipif(
    not (Path(REAL) / "omniglot-py").is_dir() or not REAL, reason="set DATA_ROOT to a folder that holds omniglot-py"
)
def test_real_omniglot() -> None:
    data = ready(Path(REAL), image_size=28, verify=True, val_fraction=0.1, samples_per_class=2)
    assert (data.num_train, len(data.test_labels), len(data.test_classes)) == (19_280, 13_180, 659)
    assert (data.num_classes, len(data.val_classes)) == (868, 96)
    assert len({name.split("/")[0] for name in data.classes + data.val_classes}) == 30
    assert torch.bincount(data.stored_labels).tolist() == [20] * 964
    assert 0.05 < data.train_images.double().mean() / 255 < 0.1, "little ink on much paper"
