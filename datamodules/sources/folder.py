"""Any tree of image folders: ``root/{train,val,test}/CLASS/IMAGE``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch

from datamodules.image_files import ImageFiles
from datamodules.reading.folder_tree import class_names, scan, validation_folder
from datamodules.reading.walk import LeftOut


class Folder(ImageFiles):
    """Images in class folders.

    Classes are the folder names of the training part, sorted; the other parts are mapped to them by name.

    Args:
        seed: the run's seed.
        root: folder that holds the parts.
        val_folder: name of the validation part; where it is None, validation is split from training, and so it is where
            there is no ``val`` (nor ``valid`` or ``validation``, which are taken for it).
        test_folder: name of the test part (ImageNet's public layout calls it ``val``).
        expect: ``{"classes": C, "train": N}`` of a well-known set. What is read must agree; and where there is no
            ``root`` yet, everything but the images is built from these numbers, so that a recipe can be looked at.
        **common: the keys of ``ImageFiles`` and ``ImageData``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        root: str,
        val_folder: str | None = "val",
        test_folder: str = "test",
        expect: dict[str, Annotated[int, "x >= 1"]] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(seed, **common)
        if val_folder == test_folder:
            raise ValueError(
                f"data.val_folder and data.test_folder are both {test_folder!r}; the test images must not "
                "select the model, set data.val_folder=null to split from the training part"
            )
        self.root, self.val_folder, self.test_folder = Path(os.path.expanduser(root)), val_folder, test_folder
        self.expect = checked_facts(expect)

    def read(self) -> None:
        try:
            self.classes = class_names(self.root / "train", LeftOut())
        except FileNotFoundError as error:
            if self.expect is None or self.root.exists():
                raise
            self._stand_in(str(error))
            return
        val = validation_folder(self.root, self.val_folder, self.test_folder)
        train, self.train_labels = scan(self.root / "train", self.classes)
        self._check_facts()
        missing = self.allow_missing_classes
        test, self.test_labels = scan(self.root / self.test_folder, self.classes, missing)
        self.files = {"train": train, "test": test}
        if val is not None:
            self.files["val"], self.val_labels = scan(val, self.classes, missing)

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


def checked_facts(expect: dict[str, int] | None) -> dict[str, int] | None:
    """The declared facts of a set; ValueError where they are incomplete or impossible."""
    if expect is not None and (set(expect) != {"classes", "train"} or not 1 <= expect["classes"] <= expect["train"]):
        raise ValueError(f"data.expect={expect} must be null or {{classes: C, train: N}} with 1 <= C <= N")
    return expect
