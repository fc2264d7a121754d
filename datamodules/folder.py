"""Any tree of image folders: ``root/{train,val,test}/CLASS/IMAGE``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from datamodules.albumentations_transforms import FileAugment
from datamodules.base import ImageData
from datamodules.decode import MAX_PIXELS
from datamodules.files import FileSource
from datamodules.folder_tree import class_names, scan


class Folder(ImageData):
    """Images in class folders, decoded while training (JPEG, PNG, WebP, BMP; see ``datamodules.decode``).

    Classes are the folder names of the training part, sorted; the other parts are mapped to them by name. Training
    images go through ``augment``; evaluation, and training without it: shorter side to ``resize_size``, central crop.

    Args:
        seed: the run's seed.
        root: folder that holds the parts.
        image_size: side of the images for the network, in pixels.
        resize_size: shorter side before the central crop; None means ``image_size / 0.875``.
        interpolation: of that resizing.
        max_pixels: refuse images with more pixels than this, before they are decoded.
        val_folder: name of the validation part; where it is None or absent, validation is split from training.
        test_folder: name of the test part (ImageNet's public layout calls it ``val``).
        allow_missing_classes: accept validation and test parts that lack some classes.
        augment: what training does to the images; None means resize and central crop.
        expect: ``{"classes": C, "train": N}`` of a well-known set. What is read must agree; and where there is no
            ``root`` yet, everything but the images is built from these numbers, so that a recipe can be looked at.
        **common: the keys of ``ImageData``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        root: str,
        image_size: int = 224,
        resize_size: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bicubic",
        max_pixels: int = MAX_PIXELS,
        val_folder: str | None = "val",
        test_folder: str = "test",
        allow_missing_classes: bool = False,
        augment: FileAugment | None = None,
        expect: dict[str, int] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(
            seed,
            **common,
        )
        if augment is not None and not isinstance(augment, FileAugment):
            raise TypeError(
                "data.augment of Folder must be a datamodules.albumentations_transforms.FileAugment, "
                f"got {type(augment).__name__}"
            )
        if val_folder == test_folder:
            raise ValueError(
                f"data.val_folder and data.test_folder are both {test_folder!r}; the test images must not "
                "select the model, set data.val_folder=null to split from the training part"
            )
        self.root, self.val_folder, self.test_folder = Path(root).expanduser(), val_folder, test_folder
        self.image_size = image_size
        self.resize_size, self.interpolation = checked_sizes(image_size, resize_size, interpolation)
        self.max_pixels, self.allow_missing_classes, self.augment = max_pixels, allow_missing_classes, augment
        self.expect = checked_facts(expect)

    def read(self) -> None:
        try:
            self.classes = class_names(self.root / "train")
        except FileNotFoundError as error:
            if self.expect is None or self.root.exists():
                raise
            self._stand_in(str(error))
            return
        train, self.train_labels = scan(self.root / "train", self.classes)
        self._check_facts()
        missing = self.allow_missing_classes
        test, self.test_labels = scan(self.root / self.test_folder, self.classes, missing)
        self.files = {"train": train, "test": test}
        if self.val_folder is not None and (self.root / self.val_folder).is_dir():
            self.files["val"], self.val_labels = scan(self.root / self.val_folder, self.classes, missing)

    def _stand_in(self, reason: str) -> None:
        """Sizes without images, from the declared facts."""
        assert self.expect is not None
        self.absent = f"{reason}; data.root=FOLDER says where the images are"
        self.classes = tuple(f"class {label}" for label in range(self.expect["classes"]))
        self.train_labels = torch.arange(self.expect["train"]) % len(self.classes)
        self.test_labels = torch.empty(0, dtype=torch.int64)
        self.files = {}

    def _check_facts(self) -> None:
        found = {"classes": len(self.classes), "train": len(self.train_labels)}
        if self.expect is not None and found != self.expect:
            raise ValueError(
                f"{self.root} holds {found['train']} training images in {found['classes']} classes, and data.expect "
                f"says {self.expect['train']} in {self.expect['classes']}; complete the folder, or set data.expect=null"
            )

    def source(self, part: str) -> FileSource:
        if self.absent:
            raise FileNotFoundError(self.absent)
        own = part if part in self.files else "train"
        labels = {"train": self.train_labels, "val": self.val_labels, "test": self.test_labels}[own]
        augment = self.augment if part == "train" else None
        assert labels is not None
        return FileSource(
            self.files[own],
            labels,
            self.image_size,
            self.resize_size,
            self.interpolation,
            self.max_pixels,
            augment,
            self.seed,
        )

    def content_digest(self) -> str:
        """Over names, labels and file sizes; reading all pixels of a large set would take hours."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for part, files in sorted(self.files.items()):
            for index in range(len(files)):
                digest.update(
                    f"{part}/{files.name(index)}\0{files[index].stat().st_size}\n".encode(errors="surrogateescape")
                )
        return digest.hexdigest()

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


def checked_facts(expect: dict[str, int] | None) -> dict[str, int] | None:
    """The declared facts of a set; ValueError where they are incomplete or impossible."""
    if expect is not None and (set(expect) != {"classes", "train"} or not 1 <= expect["classes"] <= expect["train"]):
        raise ValueError(f"data.expect={expect} must be null or {{classes: C, train: N}} with 1 <= C <= N")
    return expect


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
