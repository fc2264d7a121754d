"""Training transforms of images read from files, by albumentations; the only module that imports it."""

from __future__ import annotations

import os
from typing import Annotated, Any

import numpy as np

from kernels.ranges import RangeChecked


class FileAugment(RangeChecked):
    """Random resized crop, flip and colour jitter (Szegedy et al. 2015, 1409.4842, section 6).

    Args:
        min_scale: smallest share of the image's area that a crop keeps; the largest is all of it.
        flip_prob: probability of mirroring left to right.
        brightness: factor drawn from [1 - brightness, 1 + brightness].
        contrast: the same for contrast.
        saturation: the same for saturation.
        hue: turn of the hue drawn from [-hue, hue], in full circles, at most 0.5.

    Example:
        >>> FileAugment()(np.zeros((30, 40, 3), np.uint8), seeds=(1, 2, 3), size=24).shape
        (24, 24, 3)
    """

    streams = ("file.crop", "file.flip", "file.colour")
    lazy = ("_steps",)

    def __init__(
        self,
        *,
        min_scale: Annotated[float, "0 < x <= 1"] = 0.08,
        flip_prob: Annotated[float, "0 <= x <= 1"] = 0.5,
        brightness: Annotated[float, "0 <= x <= 1"] = 0.0,
        contrast: Annotated[float, "0 <= x <= 1"] = 0.0,
        saturation: Annotated[float, "0 <= x <= 1"] = 0.0,
        hue: Annotated[float, "0 <= x <= 0.5"] = 0.0,
    ) -> None:
        self.min_scale, self.flip_prob = min_scale, flip_prob
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self._steps: dict[int, Any] = {}

    def __call__(self, image: np.ndarray, seeds: tuple[int, ...], size: int) -> np.ndarray:
        """One image, ``[H, W, 3]`` uint8 -> ``[size, size, 3]`` uint8.

        Args:
            image: RGB.
            seeds: a number >= 0 for each of ``streams``; they alone decide what is drawn.
            size: side of the result.
        """
        if size not in self._steps:
            self._steps[size] = self._compose(size)
        steps = self._steps[size]
        # Not Compose.set_random_seed: that gives every transform the same seed, which ties, say, the brightness
        # to the size of the crop.
        for transform, seed in zip(steps.transforms, seeds, strict=False):
            transform.set_random_seed(seed)
        return steps(image=image)["image"]

    def _compose(self, size: int) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version otherwise
        try:
            import albumentations
            import cv2
        except ImportError as error:
            raise ImportError(
                "training on image files needs albumentations; pip install 'albumentations>=2.0.8,<2.1', "
                "or set data.augment=null"
            ) from error

        cv2.setNumThreads(0)  # its threads do not survive the fork of a loader process
        steps = [
            albumentations.RandomResizedCrop((size, size), scale=(self.min_scale, 1.0), area_for_downscale="image"),
            albumentations.HorizontalFlip(p=self.flip_prob),
        ]
        if self.brightness or self.contrast or self.saturation or self.hue:
            ranges = [(1 - r, 1 + r) for r in (self.brightness, self.contrast, self.saturation)]
            steps.append(albumentations.ColorJitter(*ranges, hue=(-self.hue, self.hue), p=1.0))
        return albumentations.Compose(steps)
