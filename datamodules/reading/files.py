"""A list of image files as a data set: decoded when asked for, augmented by key."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentation.albumentations_transforms import FileAugment
from datamodules.order.order import Keys
from datamodules.reading.decode import Interpolation, read_rgb, resize_and_crop
from datamodules.reading.file_list import FileList
from datamodules.reading.unreadable import Tally, UnreadableImage, substitute
from kernels.augment import to_float
from kernels.batch import Batch
from kernels.counter_rng import bits


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
        tally: pass over files that cannot be read and count them here; None raises.
        choices: ``[M]`` positions that may stand in for a file that is passed over; None leaves it out of its batch.
        clean_labels: ``[N]`` before noise; None where the labels have none.
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
        tally: Tally | None = None,
        choices: Tensor | None = None,
        clean_labels: Tensor | None = None,
    ) -> None:
        self.files, self.labels, self.image_size, self.resize_size = files, labels, image_size, resize_size
        self.interpolation, self.max_pixels, self.augment, self.seed = interpolation, max_pixels, augment, seed
        self.tally, self.choices, self.clean_labels = tally, choices, clean_labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: Keys) -> Batch:
        """The batch of these keys; index and label are those of the samples it holds."""
        index, view = (torch.from_numpy(column).clone() for column in (keys.index, keys.view))  # the sampler owns them
        shown = keys.shown(self.augment is not None)
        pictures = self._pictures(index, view, keys.epoch)
        if any(picture is None for picture in pictures):
            pictures, index, rows = self._without_gaps(pictures, index, view, keys.epoch)
            view, shown = view[rows], None if shown is None else shown[rows]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # type: ignore[arg-type]
        label, clean = self.labels[index], None if self.clean_labels is None else self.clean_labels[index]
        return Batch(to_float(images), label, index, view, shown, clean_label=clean, position=keys.position)

    def picture(self, position: int, seeds: tuple[int, ...] | None = None) -> np.ndarray:
        """One image as it goes into a batch, ``[H, W, 3]`` uint8; augmented where there are seeds.

        Raises:
            UnreadableImage: naming file and index, whatever was wrong with the file.
        """
        try:
            image = read_rgb(self.files[position], self.max_pixels)
        except MemoryError:  # no fault of the file
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise UnreadableImage(
                f"cannot read image {self.files[position]} (index {position}): {error}; replace the file or remove it"
            ) from error
        if self.augment is not None and seeds is not None:
            return self.augment(np.array(image), seeds, self.image_size)
        return resize_and_crop(image, self.resize_size, self.image_size, self.interpolation)

    def _pictures(self, index_B: Tensor, view_B: Tensor, epoch: int) -> list[np.ndarray | None]:
        """The image of each key; None where the file cannot be read and is passed over."""
        positions = index_B.tolist()
        if self.augment is None:
            return [self._attempt(position, None) for position in positions]
        words = bits(self.seed, epoch, index_B, view_B, FileAugment.streams)
        seeds = (words & (2**63 - 1)).T.tolist()  # seeds must not be negative
        return [self._attempt(position, tuple(own)) for position, own in zip(positions, seeds, strict=True)]

    def _attempt(self, position: int, seeds: tuple[int, ...] | None) -> np.ndarray | None:
        try:
            return self.picture(position, seeds)
        except UnreadableImage as error:
            if self.tally is None:
                raise
            self.tally.mark(position, error)
            return None

    def _without_gaps(
        self, pictures: list[np.ndarray | None], index_B: Tensor, view_B: Tensor, epoch: int
    ) -> tuple[list[np.ndarray | None], Tensor, list[int]]:
        """Pictures and indices after every gap was filled by a substitute, or left out without ``choices``; and the
        rows that are still there."""
        gaps = [row for row, picture in enumerate(pictures) if picture is None]
        if self.choices is None:
            rows = [row for row, picture in enumerate(pictures) if picture is not None]
            if not rows:
                raise UnreadableImage(
                    f"none of the {len(pictures)} images of an evaluation batch can be read, the first is "
                    f"{self.files[int(index_B[0])]}; replace the files or remove them"
                )
            return [pictures[row] for row in rows], index_B[rows], rows
        for row in gaps:
            index_B[row], pictures[row] = self._another(int(index_B[row]), view_B[row : row + 1], epoch, self.choices)
        return pictures, index_B, list(range(len(pictures)))

    def _another(self, position: int, view: Tensor, epoch: int, choices: Tensor) -> tuple[int, np.ndarray]:
        def read(other: int) -> np.ndarray | None:
            return self._pictures(torch.tensor([other]), view, epoch)[0]

        return substitute(read, position, choices, self.seed, epoch)
