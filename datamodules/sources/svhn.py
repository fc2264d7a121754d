"""SVHN in torchvision's layout: two MATLAB files, whose headers are looked at before anything is unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.published_arrays import PublishedArrays, check_md5
from datamodules.reading.download import download

SHA256 = {  # as TensorFlow Datasets and torchvision's prototype data sets give them; torchvision itself has md5 sums
    "train": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}
MAX_BYTES = 2**28  # of a file; the larger one has 182 MB
MAX_IMAGES = 2**20


class SVHN(PublishedArrays):
    """73,257 training and 26,032 test images of house numbers, 32 px, the digit in the middle is the class.

    The files say 10 for the digit 0; here it is class 0, as in torchvision. The ``extra`` images are not used. Classes
    have between 4,659 (digit 9) and 13,861 (digit 1) training images.

    Source: Netzer, Wang, Coates, Bissacco, Wu, Ng (2011), "Reading Digits in Natural Images with Unsupervised Feature
    Learning", NIPS workshop.

    Args:
        seed: the run's seed.
        root: folder that holds ``train_32x32.mat`` and ``test_32x32.mat``.
        download: fetch the files into ``root`` where they are missing; their sha256 is checked.
        verify: compare the md5 sums of the files with the published ones; false accepts rebuilt files.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        files = {part: (name, md5) for part, (_, name, md5) in _facts().items()}
        names = [name for name, _ in files.values()]
        self.need(self.root, names, "bring these files", " and ".join(names))
        if self.verify:
            check_md5(self.root, list(files.values()))
        train, test = (read_digits(self.root / name) for name, _ in files.values())
        return train, test, tuple("0123456789")

    def fetch(self) -> None:
        """The files that are not there, each checked."""
        for part, (url, name, _) in _facts().items():
            download(url.replace("http://", "https://", 1), self.root / name, SHA256[part], MAX_BYTES)


def _facts() -> dict[str, list[str]]:
    """Address, name and md5 of the file of each part."""
    from torchvision import datasets

    return {part: datasets.SVHN.split_list[part] for part in ("train", "test")}


def read_digits(path: Path) -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, 32, 32]`` uint8 and labels ``[N]`` in 0..9 of a file.

    Raises:
        ValueError: a damaged file, or one that holds anything but ``X`` [32, 32, 3, N] and ``y`` [N, 1].
    """
    from scipy.io import loadmat, whosmat

    try:
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        _check_shapes(path, shapes)
        content: dict[str, Any] = loadmat(path, variable_names=["X", "y"])
    except _WrongContent:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}; bring the published one") from error
    images, labels = content["X"], content["y"].reshape(-1)
    if images.dtype != np.uint8:
        raise ValueError(f"images in {path} are {images.dtype}; SVHN holds uint8")
    if labels.dtype.kind not in "iuf" or not np.isin(labels, np.arange(1, 11)).all():
        raise ValueError(f"labels in {path} are not all whole numbers in 1..10; bring the published file")
    image = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return torch.from_numpy(image), torch.from_numpy(labels.astype(np.int64) % 10)


class _WrongContent(ValueError):
    """The file can be read and is another one."""


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse by the header alone, so that nothing large is unpacked from a file that is none of the set."""
    for name in ("X", "y"):
        if name not in shapes:
            raise _WrongContent(f"{path} has no {name!r}, only {', '.join(shapes) or 'nothing'}; bring another copy")
    images, labels = tuple(shapes["X"]), tuple(shapes["y"])
    if len(images) != 4 or images[:3] != (32, 32, 3) or images[3] > MAX_IMAGES:
        raise _WrongContent(
            f"images in {path} have shape {list(images)}; SVHN holds [32, 32, 3, N], N up to {MAX_IMAGES}"
        )
    if sorted(labels) != sorted((images[3], 1)):
        raise _WrongContent(f"{path} holds {images[3]} images but labels of shape {list(labels)}; bring another copy")
