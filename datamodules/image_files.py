"""What all image sets that are read file by file have in common; subclasses say which files there are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.augmentation.albumentations_transforms import FileAugment
from datamodules.base import ImageData
from datamodules.manifest import Parts, files_entry
from datamodules.reading.decode import MAX_PIXELS
from datamodules.reading.file_list import FileList
from datamodules.reading.files import FileSource
from datamodules.reading.unreadable import Tally, check_policy


class ImageFiles(ImageData):
    """Images decoded while training (JPEG, PNG, WebP, BMP, GIF, TIFF; see ``datamodules.reading.decode``).

    Training images go through ``augment``; evaluation, and training without it: shorter side to ``resize_size``,
    central crop. Subclasses define ``read``, which fills ``files`` beside what ``ImageData`` asks for.

    Attributes (after ``setup``):
        files: paths of ``train``, ``test`` and, where the set has one, ``val``; ``Batch.index`` is the position.

    Args:
        seed: the run's seed.
        image_size: side of the images for the network, in pixels.
        resize_size: shorter side before the central crop; None means ``image_size / 0.875``.
        interpolation: of that resizing.
        max_pixels: refuse images with more pixels than this, before they are decoded.
        allow_missing_classes: accept validation and test parts that lack some classes.
        on_unreadable: ``raise`` names the file and stops; ``substitute`` trains on another training sample in its
            place and leaves it out of evaluation.
        max_substituted: share of the files of a part that may be unreadable; more than that stops all the same.
        augment: what training does to the images; None means resize and central crop.
        **common: the keys of ``ImageData``.
    """

    files: dict[str, FileList]

    def __init__(
        self,
        seed: int = 0,
        *,
        image_size: Annotated[int, "1 <= x <= 16384"] = 224,
        resize_size: Annotated[int, "1 <= x <= 16384"] | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bicubic",
        max_pixels: Annotated[int, "x >= 1"] = MAX_PIXELS,
        allow_missing_classes: bool = False,
        on_unreadable: Literal["raise", "substitute"] = "raise",
        max_substituted: Annotated[float, "0 < x <= 1"] = 0.01,
        augment: FileAugment | None = None,
        **common: Any,
    ) -> None:
        super().__init__(seed, **common)
        if augment is not None and not isinstance(augment, FileAugment):
            raise TypeError(
                f"data.augment of {type(self).__name__} must be a "
                f"datamodules.augmentation.albumentations_transforms.FileAugment, got {type(augment).__name__}"
            )
        check_policy(on_unreadable)
        self.image_size = image_size
        self.resize_size, self.interpolation = checked_sizes(image_size, resize_size, interpolation)
        self.max_pixels, self.allow_missing_classes, self.augment = max_pixels, allow_missing_classes, augment
        self.on_unreadable, self.max_substituted = on_unreadable, max_substituted
        self.leaves_out = on_unreadable == "substitute"
        self._tallies: dict[str, Tally] = {}

    def source(self, part: str) -> FileSource:
        if self.absent:
            raise FileNotFoundError(self.absent)
        own = part if part in self.files else "train"
        return FileSource(
            self.files[own],
            self.labels_of(part),
            self.image_size,
            self.resize_size,
            self.interpolation,
            self.max_pixels,
            self.augment if part == "train" else None,
            self.seed,
            self._tally(own),
            self.train_index if part == "train" else None,
            self.clean_labels_of(part),
        )

    def _tally(self, own: str) -> Tally | None:
        """One count for every source that reads these files, kept over epochs."""
        if self.on_unreadable == "raise":
            return None
        if own not in self._tallies:
            self._tallies[own] = Tally(self.files[own], own, self.max_substituted)
        return self._tallies[own]

    def unreadable(self) -> dict[str, dict[str, Any]]:
        """How many files of each part were passed over so far, and the first of them; only parts that have any."""
        reports = {part: tally.report() for part, tally in self._tallies.items()}
        return {part: report for part, report in reports.items() if report["files"]}

    def check_classes(self, part: str, labels: Tensor, where: str) -> None:
        """Raise ValueError naming the classes without a sample in ``labels``, unless that is allowed."""
        classes = self.classes_of(part)
        counts = torch.bincount(labels, minlength=len(classes))
        absent = [classes[label] for label in (counts == 0).nonzero()[:, 0].tolist()]
        if absent and (part == "train" or not self.allow_missing_classes):
            advice = "add some" if part == "train" else "add some, or set data.allow_missing_classes=true"
            shown = ", ".join(repr(name) for name in absent[:5])
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise ValueError(f"{where} has no image of these classes: {shown}{more}; {advice}")

    def fingerprint(self) -> Parts:
        labels = {"train": self.stored_labels, "test": self.test_labels}
        if self.val_labels is not None:
            labels["val"] = self.val_labels
        return {part: files_entry(files, labels[part]) for part, files in sorted(self.files.items())}

    def preprocessing(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "resize_size": self.resize_size,
            "interpolation": self.interpolation,
            "channels": "RGB",
            "range": [0.0, 1.0],
        }

    def test_picture(self, index: int) -> np.ndarray:
        return self.source("test").picture(index)

    def test_paths(self) -> list[str] | None:
        files = self.source("test").files
        return [str(files[index]) for index in range(len(files))]


def checked_sizes(image_size: int, resize_size: int | None, interpolation: Any) -> tuple[int, Any]:
    """``resize_size`` with its default filled in, and the interpolation; ValueError where they make no sense."""
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"data.interpolation is {interpolation!r}; choose bilinear or bicubic")
    resize_size = round(image_size / 0.875) if resize_size is None else resize_size
    if not 1 <= image_size <= resize_size:
        raise ValueError(
            f"data.image_size={image_size} must be at least 1 and at most data.resize_size={resize_size}, "
            "the shorter side it is cropped from"
        )
    return resize_size, interpolation
