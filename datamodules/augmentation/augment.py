"""Augmentation of images that are in memory: whole batches of bytes at once, on the device where there is one."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels import augment as kernel
from kernels.counter_rng import uniform
from kernels.ranges import RangeChecked

_GEOMETRY = ("crop.top", "crop.left", "flip")
_FURTHER = ("cutout.row", "cutout.column", "brightness", "contrast")


class BatchAugment(RangeChecked):
    """Random crop, flip, cutout and brightness / contrast, each a function of (seed, epoch, index, view) alone.

    Args:
        crop_padding: pixels added on each side, of which a random window of the old size is kept; 0 = no crop.
        padding_mode: what the added pixels show: ``constant`` black, ``reflect`` the mirrored image.
        flip_prob: probability of mirroring left to right.
        cutout_size: side in pixels of a blackened square at a random centre; 0 = none.
        brightness: factor drawn from [1 - brightness, 1 + brightness].
        contrast: factor around the image's mean drawn from [1 - contrast, 1 + contrast].

    Example:
        >>> images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
        >>> augment = BatchAugment(crop_padding=2, flip_prob=0.5)
        >>> augment(augment.prepare(images), torch.tensor([3, 1]), 0, seed=0, epoch=0, size=(8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        *,
        crop_padding: Annotated[int, "x >= 0"] = 4,
        padding_mode: Literal["constant", "reflect"] = "constant",
        flip_prob: Annotated[float, "0 <= x <= 1"] = 0.5,
        cutout_size: Annotated[int, "x >= 0"] = 0,
        brightness: Annotated[float, "0 <= x <= 1"] = 0.0,
        contrast: Annotated[float, "0 <= x <= 1"] = 0.0,
    ) -> None:
        if padding_mode not in ("constant", "reflect"):
            raise ValueError(f"augment.padding_mode is {padding_mode!r}; choose constant or reflect")
        self.crop_padding, self.padding_mode, self.flip_prob = crop_padding, padding_mode, flip_prob
        self.cutout_size, self.brightness, self.contrast = cutout_size, brightness, contrast
        self._jitters = brightness > 0 or contrast > 0
        self._streams = _GEOMETRY + (_FURTHER if self._jitters or cutout_size else ())

    def prepare(self, images: Tensor) -> Tensor:
        """The set with its borders, made once: ``[N, 3, H, W]`` uint8 -> ``[N, 3, H + 2P, W + 2P]``.

        Raises:
            ValueError: borders or a square after which nothing of an image may be left.
        """
        side = min(images.shape[-2:])
        for name, size, limit in (
            ("crop_padding", self.crop_padding, side),
            ("cutout_size", self.cutout_size, 2 * side),
        ):
            if size >= limit:
                raise ValueError(
                    f"augment.{name}={size} can leave nothing of an image of {side} px; allowed: below {limit}"
                )
        return kernel.pad(images, self.crop_padding, self.padding_mode)

    def __call__(
        self, prepared: Tensor, index_B: Tensor, view_B: Tensor | int, *, seed: int, epoch: int, size: tuple[int, int]
    ) -> Tensor:
        """Augmented images ``[B, 3, H, W]`` float32 in [0, 1].

        Args:
            prepared: the whole set from ``prepare``, on any device.
            index_B: ``[B]`` positions in the set, on the CPU (drawing there and sending 7 B numbers is faster).
            view_B: earlier visits of each sample in this epoch.
            seed: the run's seed.
            epoch: 0-based epoch.
            size: height and width of the images before ``prepare``.
        """
        draws = uniform(seed, epoch, index_B, view_B, self._streams)
        flips = draws[2] < self.flip_prob
        draws = draws.to(prepared.device, non_blocking=True)
        top, left = (draws[:2] * (2 * self.crop_padding + 1)).to(torch.int64)
        images = kernel.crop(prepared, index_B.to(prepared.device, non_blocking=True), top, left, size)
        if self.flip_prob > 0:
            images = kernel.flip(images, flips)
        if self.cutout_size > 0:
            row, column = (int(side) * draw for side, draw in zip(size, draws[3:5], strict=True))
            images = kernel.cutout(images, row.to(torch.int64), column.to(torch.int64), self.cutout_size)
        if not self._jitters:
            return kernel.to_float(images)
        brightness, contrast = 1 + self.brightness * (2 * draws[5] - 1), 1 + self.contrast * (2 * draws[6] - 1)
        return kernel.jitter(images, brightness, contrast)
