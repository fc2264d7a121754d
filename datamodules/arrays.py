"""Sources whose images fit in memory: one uint8 tensor, augmented in whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentation.augment import BatchAugment
from datamodules.base import ImageData
from datamodules.manifest import Parts, entry
from datamodules.order.order import Keys
from kernels.augment import to_float
from kernels.batch import Batch


class ArraySource(Dataset[Batch]):
    """Images and labels by key. Without ``augment`` the images come as stored.

    Args:
        images: ``[N, 3, H, W]`` uint8 of the full set; already prepared (padded) where there is an ``augment``.
        labels: ``[N]`` int64.
        size: height and width of the images that come out.
        augment: what training does to them.
        seed: the run's seed.
        clean_labels: ``[N]`` before noise; None where the labels have none.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        augment: BatchAugment | None = None,
        seed: int = 0,
        clean_labels: Tensor | None = None,
    ) -> None:
        self.images, self.labels, self.size, self.augment, self.seed = images, labels, size, augment, seed
        self.clean_labels = clean_labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Keys) -> Batch:
        """The batch of these keys, on the device of the images."""
        index, view = (torch.from_numpy(column).clone() for column in (keys.index, keys.view))  # the sampler owns them
        device = self.images.device
        placed = index.to(device, non_blocking=True)
        if self.augment is None:
            image = to_float(self.images.index_select(0, placed))
        else:
            image = self.augment(self.images, index, view, seed=self.seed, epoch=keys.epoch, size=self.size)
        label, view = self.labels.index_select(0, placed), view.to(device, non_blocking=True)
        shown = keys.shown(self.augment is not None)
        shown = None if shown is None else shown.to(device, non_blocking=True)
        clean = None if self.clean_labels is None else self.clean_labels.index_select(0, placed)
        return Batch(image, label, placed, view, shown, clean_label=clean, position=keys.position)


class ArrayData(ImageData):
    """An image set in memory. Subclasses define ``arrays``.

    Attributes (after ``setup``):
        train_images, test_images: ``[N, 3, H, W]`` uint8 without added borders.

    Args:
        seed: the run's seed.
        augment: what training does to the images; None leaves them as they are.
        **common: the keys of ``ImageData``.
    """

    def __init__(self, seed: int = 0, *, augment: BatchAugment | None = None, **common: Any) -> None:
        super().__init__(seed, **common)
        if augment is not None and not isinstance(augment, BatchAugment):
            raise TypeError(
                f"data.augment of {type(self).__name__} must be a datamodules.augmentation.augment.BatchAugment, "
                f"got {type(augment).__name__}"
            )
        self.augment = augment

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        """(train images, labels), (test images, labels), class names; images ``[N, 3, H, W]`` uint8."""
        raise NotImplementedError(f"{type(self).__name__} must define arrays()")

    def read(self) -> None:
        (train, self.train_labels), (test, self.test_labels), self.classes = self.arrays()
        check_images(train, self.train_labels, "train", None, self.channels)
        self.size = (train.shape[2], train.shape[3])
        check_images(test, self.test_labels, "test", self.size, self.channels)
        self.image_size = self.size[0]
        self.test_images = test
        self.train_images = train
        if self.augment is not None:
            # One copy only: the images without their borders are a view into the padded ones.
            self._prepared = self.augment.prepare(train)
            p = self.augment.crop_padding
            self.train_images = self._prepared[:, :, p : p + self.size[0], p : p + self.size[1]]

    def source(self, part: str) -> ArraySource:
        labels, clean = self.labels_of(part), self.clean_labels_of(part)
        augment = self.augment if part == "train" else None
        stored = "test_images" if part == "test" else "train_images" if augment is None else "_prepared"
        images: Tensor = getattr(self, stored)
        if self.num_workers == 0 and self.device.type == "cuda":
            images, labels = self._placed(stored, images), labels.to(self.device)
            clean = None if clean is None else clean.to(self.device)
        return ArraySource(images, labels, self.size, augment, self.seed, clean)

    def _placed(self, stored: str, images: Tensor) -> Tensor:
        """The images on the device, sent once for all parts that share them and however often a loader is rebuilt."""
        cache: dict[tuple[str, torch.device], Tensor] = self.__dict__.setdefault("_on_device", {})
        if (stored, self.device) not in cache:
            cache[stored, self.device] = images.to(self.device)
        return cache[stored, self.device]

    def fingerprint(self) -> Parts:
        return {
            "train": entry(len(self.stored_labels), _content(self.train_images, self.stored_labels)),
            "test": entry(len(self.test_labels), _content(self.test_images, self.test_labels)),
        }

    def preprocessing(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "resize_size": self.image_size,
            "interpolation": "bicubic",
            "channels": "RGB" if self.channels == 3 else "grey",
            "range": [0.0, 1.0],
        }

    def test_picture(self, index: int) -> np.ndarray:
        return self.test_images[index].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def _content(*tensors: Tensor) -> Iterator[bytes | memoryview]:
    """Shapes, types and bytes of tensors."""
    for tensor in tensors:
        yield repr((tuple(tensor.shape), tensor.dtype)).encode()
        for block in tensor.split(4096):  # the training images are a view with gaps; copy a little at a time
            yield memoryview(block.contiguous().numpy()).cast("B")


def check_images(images: Tensor, labels: Tensor, part: str, size: tuple[int, int] | None, channels: int = 3) -> None:
    """Raise where images are not ``[N, channels, H, W]`` uint8, not of ``size``, or not as many as labels."""
    if images.dtype != torch.uint8:
        raise TypeError(f"{part} images are {images.dtype}; give uint8 in 0..255")
    if images.ndim != 4 or images.shape[1] != channels:
        order = " in RGB order" if channels == 3 else ""
        raise ValueError(f"{part} images have shape {list(images.shape)}; give [N, {channels}, H, W]{order}")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"{part} images are {images.shape[2]}x{images.shape[3]}; arrays must hold square images")
    if size is not None and tuple(images.shape[2:]) != size:
        raise ValueError(
            f"{part} images are {images.shape[2]}x{images.shape[3]} but the training images are "
            f"{size[0]}x{size[1]}; bring them to one size"
        )
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} {part} images but {len(labels)} labels; each image needs one")
