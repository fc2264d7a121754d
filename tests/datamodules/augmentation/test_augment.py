"""Whole-batch augmentation, re-derived image by image with plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.augmentation.augment import BatchAugment
from kernels import augment as kernel
from kernels.counter_rng import uniform


def picture(count: int, height: int = 6, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_pixel_by_pixel(mode: str) -> None:
    images, p = picture(2), 3
    padded = kernel.pad(images, p, mode)
    for row in range(-p, 6 + p):
        for column in range(-p, 8 + p):
            r, c = abs(row), abs(column)
            r, c = (10 - r if r > 5 else r), (14 - c if c > 7 else c)
            inside = 0 <= row < 6 and 0 <= column < 8
            expected = images[:, :, r, c] if inside or mode == "reflect" else torch.zeros(2, 3, dtype=torch.uint8)
            assert torch.equal(padded[:, :, row + p, column + p], expected)


def test_crop_at_every_position_and_corner() -> None:
    images = picture(5, 9, 11)
    for top in range(9 - 4 + 1):
        for left in range(11 - 7 + 1):
            index = torch.tensor([4, 0, 4])
            got = kernel.crop(images, index, torch.full((3,), top), torch.full((3,), left), (4, 7))
            assert torch.equal(got, images[index][:, :, top : top + 4, left : left + 7])


def test_flip_cutout_and_float() -> None:
    images = picture(3)
    flipped = kernel.flip(images.clone(), torch.tensor([True, False, True]))
    assert torch.equal(flipped, torch.stack([images[0].flip(-1), images[1], images[2].flip(-1)]))
    odd = picture(2, 3, 5)  # 45 bytes, not a multiple of 8
    assert torch.equal(kernel.flip(odd.clone(), torch.tensor([False, True])), torch.stack([odd[0], odd[1].flip(-1)]))
    assert torch.equal(kernel.flip(odd.clone(), torch.tensor([False, False])), odd)
    holes = kernel.cutout(images, torch.tensor([0, 3, 5]), torch.tensor([0, 4, 7]), 4)
    for i, (row, column) in enumerate([(0, 0), (3, 4), (5, 7)]):
        expected = images[i].clone()
        expected[:, max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        assert torch.equal(holes[i], expected)
    values = kernel.to_float(torch.arange(256, dtype=torch.uint8))
    assert values.dtype == torch.float32 and values.min() == 0 and values.max() == 1
    assert (values.double() - torch.arange(256).double() / 255).abs().max() < 1e-7


def test_jitter_in_float64() -> None:
    images = picture(3)
    brightness, contrast = torch.tensor([1.0, 0.5, 1.4]), torch.tensor([1.0, 1.3, 0.2])
    got = kernel.jitter(images, brightness, contrast)
    for i in range(3):
        y = images[i].double() / 255 * brightness[i].double()
        expected = (contrast[i].double() * (y - y.mean()) + y.mean()).clamp(0, 1)
        assert (got[i].double() - expected).abs().max() < 1e-6


def by_loops(augment: BatchAugment, image: Tensor, seed: int, epoch: int, index: int, view: int) -> Tensor:
    """What ``augment`` should do to one image, written again without batches."""
    names = ["crop.top", "crop.left", "flip", "cutout.row", "cutout.column", "brightness", "contrast"]
    draws = uniform(seed, epoch, torch.tensor([index]), view, names)[:, 0].tolist()
    p, (height, width) = augment.crop_padding, image.shape[1:]
    top, left = int(draws[0] * (2 * p + 1)), int(draws[1] * (2 * p + 1))
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            r, c = row + top - p, column + left - p
            if 0 <= r < height and 0 <= c < width:
                result[:, row, column] = image[:, r, c]
    if draws[2] < augment.flip_prob:
        result = result.flip(-1)
    half = augment.cutout_size // 2
    row, column = int(draws[3] * height), int(draws[4] * width)
    if augment.cutout_size:
        result[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0
    y = result.double() / 255 * (1 + augment.brightness * (2 * draws[5] - 1))
    return ((1 + augment.contrast * (2 * draws[6] - 1)) * (y - y.mean()) + y.mean()).clamp(0, 1)


@pytest.mark.parametrize("keys", [{}, {"cutout_size": 4}, {"brightness": 0.3, "contrast": 0.4, "flip_prob": 0.2}])
def test_batch_augment_equals_loops(keys: dict[str, float]) -> None:
    augment, images = BatchAugment(crop_padding=2, **keys), picture(40)  # type: ignore[arg-type]
    index, view = torch.randperm(40), torch.randint(0, 3, (40,))
    got = augment(augment.prepare(images), index, view, seed=5, epoch=3, size=(6, 8))
    for k, (i, v) in enumerate(zip(index.tolist(), view.tolist(), strict=True)):
        assert (got[k].double() - by_loops(augment, images[i], 5, 3, i, v)).abs().max() < 1e-6


def test_same_bits_alone_and_in_a_batch() -> None:
    augment, images = BatchAugment(crop_padding=2, cutout_size=2, brightness=0.5, contrast=0.5), picture(30)
    prepared = augment.prepare(images)
    index = torch.arange(30)
    together = augment(prepared, index, 0, seed=0, epoch=0, size=(6, 8))
    for i in range(30):
        assert torch.equal(augment(prepared, index[i : i + 1], 0, seed=0, epoch=0, size=(6, 8))[0], together[i])


def test_crops_and_flips_are_spread_evenly() -> None:
    augment = BatchAugment(crop_padding=1, flip_prob=0.25)
    image = torch.arange(27, dtype=torch.uint8).view(1, 3, 3, 3).repeat(9000, 1, 1, 1)
    result = augment(augment.prepare(image), torch.arange(9000), 0, seed=0, epoch=0, size=(3, 3))
    _, counts = result.view(9000, -1).unique(dim=0, return_counts=True)
    assert len(counts) == 18
    flipped = counts[counts < 500]  # 250 of each of 9 crops are expected flipped, 750 not
    assert len(flipped) == 9 and (flipped - 250).abs().max() < 70
    assert (counts[counts >= 500] - 750).abs().max() < 120


def test_nothing_switched_on_changes_nothing() -> None:
    augment, images = BatchAugment(crop_padding=0, flip_prob=0.0), picture(4)
    got = augment(augment.prepare(images), torch.arange(4), 0, seed=0, epoch=0, size=(6, 8))
    assert torch.equal(got, kernel.to_float(images))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"padding_mode": "wrap"}, "choose constant or reflect"),
        ({"crop_padding": -1}, r"crop_padding=-1 is out of range; allowed: crop_padding >= 0 \(int\)"),
        ({"cutout_size": -2}, r"cutout_size=-2 is out of range; allowed: cutout_size >= 0 \(int\)"),
        ({"flip_prob": 1.5}, "flip_prob=1.5 is out of range; allowed: 0 <= flip_prob <= 1"),
        ({"brightness": -0.1}, "brightness=-0.1 is out of range; allowed: 0 <= brightness <= 1"),
        ({"contrast": 2.0}, "contrast=2.0 is out of range; allowed: 0 <= contrast <= 1"),
    ],
)
def test_bad_settings(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchAugment(**keys)  # type: ignore[arg-type]


def test_too_much_reflection() -> None:
    with pytest.raises(ValueError, match="reflect padding of 6 needs images larger"):
        kernel.pad(picture(1), 6, "reflect")


@pytest.mark.parametrize("keys", [{"crop_padding": 5}, {"crop_padding": 5, "padding_mode": "reflect"}])
def test_borders_leave_something_of_the_image(keys: dict[str, Any]) -> None:
    BatchAugment(**keys).prepare(picture(1))
    with pytest.raises(
        ValueError, match="augment.crop_padding=6 can leave nothing of an image of 6 px; allowed: below 6"
    ):
        BatchAugment(**{**keys, "crop_padding": 6}).prepare(picture(1))


def test_a_cutout_leaves_something_of_the_image() -> None:
    BatchAugment(crop_padding=0, cutout_size=11).prepare(picture(1))
    with pytest.raises(
        ValueError, match="augment.cutout_size=12 can leave nothing of an image of 6 px; allowed: below 12"
    ):
        BatchAugment(crop_padding=0, cutout_size=12).prepare(picture(1))
