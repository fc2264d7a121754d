"""``data.augmentations=V``: augmentations come again after V epochs, and ``Batch.augmentation`` names each."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.arrays import ArrayData
from datamodules.augmentation.albumentations_transforms import FileAugment
from datamodules.augmentation.augment import BatchAugment
from datamodules.sources.folder import Folder
from kernels.batch import Batch

EPOCHS, V = 5, 2


@pytest.fixture
def source(tiny: type[ArrayData], tmp_path: Path) -> Any:
    """``source(kind, augmented, **keys)``: a small set in memory, or the same number of samples in files."""

    def build(kind: str, augmented: bool = True, **keys: Any) -> Any:
        keys = {"batch_size": 6, "val_fraction": 0.0, "drop_last": False, **keys}
        if kind == "arrays":
            strong = BatchAugment(crop_padding=2, cutout_size=3, brightness=0.9, contrast=0.9)
            return tiny(0, augment=strong if augmented else None, limit_train=12, **keys)
        generator = np.random.default_rng(0)
        for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(6):
                pixels = generator.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
        strong = FileAugment(brightness=0.5, contrast=0.5, hue=0.5)
        keys = {"root": str(tmp_path), "image_size": 8, "val_folder": None, **keys}
        return Folder(0, augment=strong if augmented else None, **keys)

    return build


def train(data: Any, epochs: int = EPOCHS) -> list[list[Batch]]:
    data.setup()
    loader = data.train_dataloader()
    return [list(loader) for _ in range(epochs)]


def shown(batches: list[Batch]) -> list[tuple[tuple[int, int], str]]:
    """((index, augmentation), sha256 of the pixels) of every sample."""
    return [
        ((int(index), int(number)), hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest())
        for batch in batches
        for image, index, number in zip(batch.image, batch.index, batch.augmentation, strict=True)  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("balanced", [False, True], ids=["shuffled", "balanced"])
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_equal_index_and_augmentation_are_equal_pixels(source: Any, kind: str, balanced: bool, workers: int) -> None:
    # Twice as many samples of each class as there are, so that each comes twice in a batch.
    keys = {"samples_per_class": 6 if kind == "arrays" else 12, "batch_size": 24} if balanced else {}
    epochs = train(source(kind, augmentations=V, num_workers=workers, **keys))
    everything = [pair for epoch in epochs for pair in shown(epoch)]
    pixels = dict(everything)
    assert all(pixels[name] == digest for name, digest in everything)
    assert len(set(pixels.values())) == len(pixels), "another name, other pixels"
    views = 1 + max(int(batch.view.max()) for epoch in epochs for batch in epoch)  # type: ignore[union-attr]
    assert views == 1 + balanced and {number for _, number in pixels} == set(range(V * views))
    order = [torch.cat([batch.index for batch in epoch]).tolist() for epoch in epochs]
    assert balanced or (order[0] != order[V] and order[1] != order[V + 1]), "the order goes by the epoch"
    without = train(source(kind, **keys), 1)[0]
    assert [pair[1] for pair in shown([b.replace(augmentation=b.view) for b in without])] == [
        pair[1] for pair in shown(epochs[0])
    ], "the first V epochs are as they were"


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_none_where_augmentations_never_come_again_and_0_where_there_are_none(source: Any, kind: str) -> None:
    assert all(batch.augmentation is None for epoch in train(source(kind), 2) for batch in epoch)
    for v in (None, V):
        still = source(kind, augmented=False, augmentations=v)
        named = [pair for epoch in train(still, 3) for pair in shown(epoch)]
        assert {number for (_, number), _ in named} == {0} and len(set(named)) == 12
        for loader in (still.train_eval_dataloader(), still.test_dataloader()):
            assert all(not batch.augmentation.any() for batch in loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_substitute_goes_by_its_own_name(source: Any, tmp_path: Path, workers: int) -> None:
    data = source("files", augmentations=V, on_unreadable="substitute", max_substituted=0.5, num_workers=workers)
    for name in ("1.png", "4.png"):
        (tmp_path / "train" / "a" / name).write_bytes(b"")
        (tmp_path / "test" / "a" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over") if workers == 0 else nullcontext():
        everything = [pair for epoch in train(data) for pair in shown(epoch)]
        tests = shown(list(data.test_dataloader()))
    pixels = dict(everything)
    assert all(pixels[name] == digest for name, digest in everything) and len(set(pixels.values())) == len(pixels)
    assert not {1, 4} & {index for index, _ in pixels} and len(tests) == 10 and {n for (_, n), _ in tests} == {0}


def test_resuming_goes_on_with_the_same_augmentations(source: Any) -> None:
    whole = [batch for epoch in train(source("arrays", augmentations=V), 4) for batch in epoch]
    again = source("arrays", augmentations=V)
    again.setup()
    again.set_position(0, 5)
    rest = [batch for _ in range(2) for batch in again.train_dataloader()]
    for one, other in zip(rest[:3], whole[5:8], strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.augmentation, other.augmentation)


def test_range(tiny: type[ArrayData]) -> None:
    with pytest.raises(ValueError, match=r"augmentations=0 is out of range; allowed: augmentations >= 1 \(int\)"):
        tiny(0, augmentations=0)
