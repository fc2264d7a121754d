"""The embedded set: cut as its description says, labels that fit the photographs."""

from __future__ import annotations

import torch

from datamodules.augmentation.augment import BatchAugment
from datamodules.sources.grocery import FOLDER, Grocery


def test_the_set() -> None:
    data = Grocery(0, batch_size=64, val_fraction=0.2, augment=BatchAugment(crop_padding=6, padding_mode="reflect"))
    data.setup()
    assert (data.num_classes, data.image_size, data.num_train, len(data.test_labels)) == (40, 48, 1000, 1000)
    assert torch.bincount(data.train_labels).tolist() == torch.bincount(data.test_labels).tolist() == [25] * 40
    assert torch.bincount(data.train_labels[data.val_index]).tolist() == [5] * 40
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (64, 3, 48, 48) and batch.image.min() >= 0 and batch.image.max() <= 1
    assert "MIT" in (FOLDER / "LICENSE.txt").read_text(encoding="utf-8")


def test_tiles_are_cut_where_the_mosaic_says() -> None:
    from PIL import Image

    data = Grocery()
    data.setup()
    mosaic = Image.open(FOLDER / "grocery40_48.jpg").convert("RGB")
    for row, column in ((0, 0), (7, 24), (39, 25), (12, 49)):
        tile = mosaic.crop((column * 48, row * 48, column * 48 + 48, row * 48 + 48))
        expected = torch.frombuffer(bytearray(tile.tobytes()), dtype=torch.uint8).view(48, 48, 3).permute(2, 0, 1)
        stored = data.train_images[row * 25 + column] if column < 25 else data.test_images[row * 25 + column - 25]
        assert torch.equal(stored, expected)


def test_neighbouring_photographs_are_of_one_class() -> None:
    """Colour histograms, nearest neighbour: far above chance only when labels fit the images (34.8 % known)."""
    data = Grocery()
    data.setup()

    def histogram(images: torch.Tensor) -> torch.Tensor:
        codes = (images.long() // 64 * torch.tensor([16, 4, 1])[:, None, None]).sum(1).flatten(1)
        return torch.stack([torch.bincount(code, minlength=64) for code in codes]).double().sqrt()

    train, test = histogram(data.train_images), histogram(data.test_images)
    nearest = torch.cdist(test, train).argmin(1)
    assert (data.train_labels[nearest] == data.test_labels).double().mean() > 0.25
