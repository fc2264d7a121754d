"""A folder of images without labels, or one image, for prediction and queries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch

from datamodules.image_files import checked_sizes
from datamodules.order.loader import Loader, make_loader
from datamodules.order.order import StoredOrder
from datamodules.reading.decode import MAX_PIXELS, SUFFIXES
from datamodules.reading.file_list import FileList
from datamodules.reading.files import FileSource
from datamodules.reading.walk import LeftOut, images_below
from kernels.ranges import RangeChecked


class Unlabelled(RangeChecked):
    """All images below a folder, at any depth, in the order of their paths; labels are -1.

    One warning says what ``datamodules.reading.walk`` leaves out, and how much.

    Args:
        preprocessing: what ``ImageData.preprocessing()`` of the training data said.
        root: the folder, or the file of one image.
        eval_batch_size: images of a batch.
        num_workers: loader processes.
        max_pixels: refuse larger images.

    Attributes:
        paths: relative to ``root``; ``Batch.index`` is the position in this list.

    Raises:
        FileNotFoundError: there is no such folder or file, or no image in it.

    Example:
        data = Unlabelled(trained_on.preprocessing(), root="photos")
        for batch in data.dataloader():
            names = [data.paths[i] for i in batch.index.tolist()]
    """

    def __init__(
        self,
        preprocessing: dict[str, Any],
        *,
        root: str,
        eval_batch_size: Annotated[int, "x >= 1"] = 256,
        num_workers: Annotated[int, "0 <= x <= 1024"] = 0,
        max_pixels: Annotated[int, "x >= 1"] = MAX_PIXELS,
    ) -> None:
        folder, left = Path(os.path.expanduser(root)), LeftOut()
        if folder.is_file():
            folder, self.paths = folder.parent, [folder.name]
        elif folder.is_dir():
            self.paths = images_below(folder, left)
        else:
            raise FileNotFoundError(
                f"no folder {folder.absolute()}; data.root must be a folder of images, or one image"
            )
        if not self.paths:
            said = f"no image in {folder.absolute()}; images are {', '.join(SUFFIXES)}"
            raise FileNotFoundError("; ".join([said, *filter(None, [left.said(folder)])]))
        left.warn(folder)
        self.batch_size, self.num_workers = eval_batch_size, num_workers
        image_size = preprocessing["image_size"]
        resize_size, interpolation = checked_sizes(
            image_size, preprocessing["resize_size"], preprocessing["interpolation"]
        )
        labels = torch.full((len(self.paths),), -1)
        self.source = FileSource(
            FileList(folder, self.paths), labels, image_size, resize_size, interpolation, max_pixels
        )

    def __len__(self) -> int:
        return len(self.paths)

    def dataloader(self) -> Loader:
        """Batches in the order of ``paths``."""
        return make_loader(self.source, StoredOrder(torch.arange(len(self)), self.batch_size), self.num_workers)
