"""GTSRB in torchvision's layout: photographs of traffic signs of many sizes, brought to one and kept in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from datamodules.labels.label_paths import Inside
from datamodules.labels.list_file import read_list
from datamodules.published_arrays import PublishedArrays
from datamodules.reading.archive import extract
from datamodules.reading.decode import resize_and_crop
from datamodules.reading.download import download
from datamodules.reading.ppm import read_ppm

TRAIN, TEST, TRUTH = "GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv"
COLUMNS = ("Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
COUNTS = (43, 26_640, 12_630)  # classes, training images, test images
BASE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
ARCHIVES = {  # what each becomes, and its sha256 as torchvision's prototype data sets give it
    "GTSRB-Training_fixed.zip": (TRAIN, "df4144942083645bd60b594de348aa6930126c3e0e5de09e39611630abf8455a"),
    "GTSRB_Final_Test_Images.zip": (TEST, "48ba6fab7e877eb64eaf8de99035b0aaecfbc279bee23e35deca4ac1d0a837fa"),
    "GTSRB_Final_Test_GT.zip": (TRUTH, "f94e5a7614d75845c74c04ddb26b8796b9e483f43541dd95dd5b726504e16d6d"),
}
MAX_BYTES = 2**31


class GTSRB(PublishedArrays):
    """26,640 training and 12,630 test photographs of 43 traffic signs, 15 to 250 px.

    ``root/gtsrb/GTSRB/Training/CLASS/*.ppm``, ``root/gtsrb/GTSRB/Final_Test/Images/*.ppm`` and
    ``root/gtsrb/GT-final_test.csv``. The shorter side is brought to ``image_size``, and the central square is kept in
    memory. Classes are called by their folders, 00000 to 00042. Training images are tracks of 30 frames of one sign;
    validation is chosen frame by frame, which makes it easier than the test.

    Source: Stallkamp, Schlipsing, Salmen, Igel (2012), "Man vs. computer: Benchmarking machine learning algorithms for
    traffic sign recognition", Neural Networks 32. The training part is that of the competition at IJCNN 2011, as in
    torchvision; the final one of 39,209 images can be put in its place with ``verify=false``.

    Args:
        seed: the run's seed.
        root: folder that holds ``gtsrb``.
        image_size: side of the images, in pixels.
        download: fetch the archives into ``root/gtsrb`` where something is missing; their sha256 is checked.
        verify: refuse a set that has other numbers of classes or images than the published one.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def __init__(self, seed: int = 0, *, image_size: Annotated[int, "1 <= x <= 16384"] = 32, **common: Any) -> None:
        super().__init__(seed, **common)
        self.image_size = image_size
        self.folder = self.root / "gtsrb"

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        unpack = f"unpack {', '.join(ARCHIVES)} in this folder"
        self.need(self.folder, [f"{TRAIN}/", f"{TEST}/", TRUTH], unpack, "gtsrb")
        classes = self._classes()
        train = [(path, label) for label, name in enumerate(classes) for path in _images(self.folder / TRAIN / name)]
        test = self._test(classes)
        found = (len(classes), len(train), len(test))
        if self.verify and found != COUNTS:
            said = ["{} classes, {} training and {} test images".format(*counts) for counts in (found, COUNTS)]
            raise ValueError(
                f"{self.folder} holds {said[0]}, expected {said[1]}; complete it, or set data.verify=false"
            )
        return self._read(train), self._read(test), classes

    def _classes(self) -> tuple[str, ...]:
        with os.scandir(self.folder / TRAIN) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        expected = [f"{label:05d}" for label in range(len(names))]
        if not names or names != expected:
            wrong = next((name for name, right in zip(names, expected, strict=True) if name != right), "none")
            raise ValueError(f"{self.folder / TRAIN} must hold the class folders 00000, 00001, ...; found {wrong!r}")
        return tuple(names)

    def _test(self, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
        table = read_list(self.folder / TRUTH, COLUMNS, separator=";", header=True)
        labels = table.integers("ClassId")
        for row, label in enumerate(labels):
            if label >= len(classes):
                table.refuse(row, f"class {label} is outside 0..{len(classes) - 1}")
        rows = table.images("Filename", "ClassId")
        Inside(self.folder / TEST).check(rows)
        return [(self.folder / TEST / name, label) for name, label in zip(rows.paths, labels, strict=True)]

    def _read(self, samples: Iterable[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
        paths, labels = zip(*samples, strict=True)
        images = torch.from_numpy(np.stack([self._picture(path) for path in paths]))
        return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

    def _picture(self, path: Path) -> np.ndarray:
        from PIL import Image

        return resize_and_crop(Image.fromarray(read_ppm(path)), self.image_size, self.image_size, "bicubic")

    def fetch(self) -> None:
        """What is missing, each archive checked and unpacked at its place."""
        for name, (place, sha256) in ARCHIVES.items():
            if (target := self.folder / place).exists():
                continue
            archive = download(BASE + name, self.folder / name, sha256, MAX_BYTES)
            if place != TRUTH:
                extract(archive, target, max_files=2 * COUNTS[1], max_bytes=MAX_BYTES, inside=place)
                continue
            unpacked = extract(archive, self.folder / Path(name).stem, max_files=10, max_bytes=MAX_BYTES)
            os.replace(unpacked / TRUTH, target)
            shutil.rmtree(unpacked)


def _images(folder: Path) -> list[Path]:
    """The ``.ppm`` files directly in a class folder, sorted; ValueError where there are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".ppm" and path.is_file())
    if not found:
        raise ValueError(f"class folder {folder} holds no .ppm image; complete it")
    return found
