"""A list of image files as a data set: decoded when asked for, augmented by key."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.albumentations_transforms import FileAugment
from datamodules.decode import Interpolation, read_rgb, resize_and_crop
from datamodules.order import Keys
from kernels.augment import to_float
from kernels.batch import Batch
from kernels.counter_rng import bits


class FileList:
    """Relative paths below a folder, in one block of memory that loader processes share."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self._names = np.array([os.fsencode(name) for name in names], dtype=bytes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return self.folder / self.name(index)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return os.fsdecode(bytes(self._names[index]))


class FileSource(Dataset[Batch]):
    """Images and labels by key.

    Args:
        files: where the images are.
        labels: ``[N]`` int64.
        image_size: side of the images that come out.
        resize_size: side to which the shorter one is brought before the central crop (without ``augment``).
        interpolation: of that step.
        max_pixels: refuse larger images.
        augment: what training does in place of resize and central crop.
        seed: the run's seed.
    """

    def __init__(
        self,
        files: FileList,
        labels: Tensor,
        image_size: int,
        resize_size: int,
        interpolation: Interpolation,
        max_pixels: int,
        augment: FileAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.files, self.labels, self.image_size, self.resize_size = files, labels, image_size, resize_size
        self.interpolation, self.max_pixels, self.augment, self.seed = interpolation, max_pixels, augment, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: Keys) -> Batch:
        """The batch of these keys."""
        index, view = (torch.from_numpy(column).clone() for column in (keys.index, keys.view))  # the sampler owns them
        if self.augment is None:
            pictures = [self.picture(position) for position in index.tolist()]
        else:
            words = bits(self.seed, keys.epoch, index, view, FileAugment.streams)
            seeds = (words & (2**63 - 1)).T.tolist()  # seeds must not be negative
            pictures = [self.picture(position, tuple(own)) for position, own in zip(index.tolist(), seeds, strict=True)]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return Batch(to_float(images), self.labels[index], index, view)

    def picture(self, position: int, seeds: tuple[int, ...] | None = None) -> np.ndarray:
        """One image as it goes into a batch, ``[H, W, 3]`` uint8; augmented where there are seeds.

        Raises:
            ValueError: naming file and index, whatever was wrong with the file.
        """
        try:
            image = read_rgb(self.files[position], self.max_pixels)
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise ValueError(
                f"cannot read image {self.files[position]} (index {position}): {error}; replace the file or remove it"
            ) from error
        if self.augment is not None and seeds is not None:
            return self.augment(np.array(image), seeds, self.image_size)
        return resize_and_crop(image, self.resize_size, self.image_size, self.interpolation)
