"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings of each; the test has alphabets of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.reading.decode import read_rgb
from datamodules.reading.folder_tree import class_names, image_names
from datamodules.reading.walk import LeftOut

FOLDERS = {"train": "images_background", "test": "images_evaluation"}
SHAPES = {"train": (964, 20), "test": (659, 20)}  # characters, drawings of each


class Omniglot(ArrayData):
    """964 background characters train, 659 evaluation characters of other alphabets test, in torchvision's layout.

    ``root/omniglot-py/{images_background,images_evaluation}/ALPHABET/CHARACTER/*.png``. Drawings are inverted, as
    usual: ink is 1, paper is 0, so that borders of zeros are paper. They are kept in memory at ``image_size`` (box
    filter of the 105 px originals). A class is called ``ALPHABET/CHARACTER``; rotated characters are no further
    classes here.

    Source: Lake, Salakhutdinov, Tenenbaum (2015), "Human-level concept learning through probabilistic program
    induction", Science 350.

    Args:
        seed: the run's seed.
        root: folder that holds ``omniglot-py``.
        image_size: side of the images, in pixels.
        channels: 3 repeats the drawing in all channels; 1 needs ``backbone.in_channels=1``.
        verify: refuse a set that has not all characters and drawings.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        root: str,
        image_size: Annotated[int, "1 <= x <= 16384"] = 28,
        channels: Literal[1, 3] = 3,
        verify: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(seed, **common)
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels}; choose 3, or 1 with backbone.in_channels=1")
        self.root = Path(os.path.expanduser(root))
        self.image_size, self.channels, self.verify = image_size, channels, verify

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        train, train_labels, classes = self._part("train")
        test, test_labels, self.test_classes = self._part("test")
        return (train, train_labels), (test, test_labels), classes

    def _part(self, part: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        folder, left = self.root / "omniglot-py" / FOLDERS[part], LeftOut()
        alphabets = class_names(folder, left)
        characters = [f"{alphabet}/{name}" for alphabet in alphabets for name in class_names(folder / alphabet, left)]
        drawings = [[folder / name / file for file in image_names(folder / name, left)] for name in characters]
        left.warn(folder)
        found = [len(own) for own in drawings]
        count, each = SHAPES[part]
        if self.verify and found != [each] * count:
            raise ValueError(
                f"{folder} holds {sum(found)} drawings of {len(found)} characters, expected {each} of each of {count}; "
                "complete it, or set data.verify=false"
            )
        if not all(found):
            raise ValueError(f"{folder / characters[found.index(0)]} holds no drawing; add some or remove the folder")
        images = torch.from_numpy(np.stack([self._ink(path) for own in drawings for path in own]))
        labels = torch.arange(len(found)).repeat_interleave(torch.tensor(found))
        return images[:, None].expand(-1, self.channels, -1, -1), labels, tuple(characters)

    def _ink(self, path: Path) -> np.ndarray:
        """``[H, W]`` uint8: 255 where there is only ink, 0 where there is none."""
        from PIL import Image

        drawing = read_rgb(path).convert("L")
        if drawing.size != (self.image_size, self.image_size):
            drawing = drawing.resize((self.image_size, self.image_size), Image.Resampling.BOX)
        return 255 - np.asarray(drawing)
