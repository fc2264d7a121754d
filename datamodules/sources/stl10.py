"""STL-10 in torchvision's binary layout: bytes of images and labels, whose sizes say how many there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.labels.label_rows import text_of
from datamodules.published_arrays import PublishedArrays, check_md5
from datamodules.reading.archive import extract
from datamodules.reading.download import download

SIDE = 96
IMAGE_BYTES = 3 * SIDE * SIDE
URL = "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
ARCHIVE_SHA256 = "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"  # as TensorFlow Datasets gives it
MAX_BYTES = 2**32  # of the archive (2.6 GB) and of what it unpacks to (3.1 GB, most of it unlabelled)
MAX_IMAGES = 100_000


class STL10(PublishedArrays):
    """5,000 training and 8,000 test images of 10 classes, 96 px: the labelled parts.

    The 100,000 images without labels are not read, and neither are the ten folds of 1,000 training images.

    Source: Coates, Lee, Ng (2011), "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS.

    Args:
        seed: the run's seed.
        root: folder that holds ``stl10_binary``.
        download: fetch the archive into ``root`` when the files are missing; its sha256 is checked.
        verify: compare the md5 sums of the files with the published ones; false accepts rebuilt files.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        from torchvision import datasets

        facts = datasets.STL10
        folder = self.root / facts.base_folder
        files = [*facts.train_list[:2], *facts.test_list]  # the third of training is unlabelled
        names = [*(name for name, _ in files), facts.class_names_file]
        self.need(folder, names, f"unpack {facts.filename} so that this folder exists", facts.base_folder)
        if self.verify:
            check_md5(folder, files)
        classes = tuple(text_of(folder / facts.class_names_file).split())
        if len(set(classes)) != 10 or len(classes) != 10:
            raise ValueError(
                f"{folder / facts.class_names_file} names {len(classes)} classes, expected 10 different ones"
            )
        train, test = (_part(folder / images, folder / labels) for images, labels in (names[:2], names[2:4]))
        return train, test, classes

    def fetch(self) -> None:
        """The archive into ``root``, its sha256 checked, and unpacked beside it."""
        from torchvision import datasets

        folder = self.root / datasets.STL10.base_folder
        if folder.exists():
            raise FileExistsError(f"{folder.absolute()} exists and is not complete; remove it to download again")
        archive = download(URL, self.root / datasets.STL10.filename, ARCHIVE_SHA256, MAX_BYTES)
        extract(archive, folder, max_files=100, max_bytes=MAX_BYTES, inside=datasets.STL10.base_folder)


def _part(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, 96, 96]`` uint8 and labels ``[N]`` in 0..9.

    Raises:
        ValueError: no whole number of images, too many, another number of labels, or labels outside 1..10.
    """
    size, count = images.stat().st_size, labels.stat().st_size
    if size == 0 or size % IMAGE_BYTES or size // IMAGE_BYTES > MAX_IMAGES:
        raise ValueError(
            f"{images} has {size} bytes, which are not 1 to {MAX_IMAGES} images of {IMAGE_BYTES} bytes; "
            "bring another copy"
        )
    if count != size // IMAGE_BYTES:
        raise ValueError(f"{images} holds {size // IMAGE_BYTES} images but {labels} {count} labels; bring another copy")
    label = np.fromfile(labels, np.uint8, count)
    if not ((label >= 1) & (label <= 10)).all():
        raise ValueError(f"labels in {labels} are not all in 1..10; bring another copy")
    columns = np.fromfile(images, np.uint8, size).reshape(count, 3, SIDE, SIDE)  # column after column
    image = np.ascontiguousarray(columns.transpose(0, 1, 3, 2))
    return torch.from_numpy(image), torch.from_numpy(label.astype(np.int64) - 1)
