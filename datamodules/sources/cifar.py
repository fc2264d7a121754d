"""CIFAR-10 and CIFAR-100 in torchvision's layout, read without trusting the files.

The batches are Python pickles, which can run code when loaded. Here they are read by an unpickler that knows numpy
arrays and nothing else, so a foreign file can at worst be refused. ``verify=true`` (the default) also compares the
published md5 sums first; ``verify=false`` accepts rebuilt batches, whose sums must differ.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.published_arrays import PublishedArrays, check_md5
from datamodules.reading.archive import extract
from datamodules.reading.download import download

MAX_BYTES = 2**28  # of the archives (170 MB) and of what they unpack to (186 MB)
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain containers and numpy arrays; anything else is refused by name and not imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a CIFAR file, with str keys.

    Raises:
        ValueError: for a damaged file, or one that holds anything but containers and numpy arrays.
    """
    try:
        entry = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"cannot read {path}: {error}; it is damaged or no CIFAR batch, bring another copy") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path} holds a {type(entry).__name__}, not a dict; it is no CIFAR batch, bring another copy")
    return entry


class CIFAR10(PublishedArrays):
    """50,000 training and 10,000 test images of 10 classes, 32 px (Krizhevsky 2009).

    Args:
        seed: the run's seed.
        root: folder that holds ``cifar-10-batches-py``.
        download: fetch the archive into ``root`` when the files are missing; its sha256 is checked.
        verify: compare the md5 sums of the files with the published ones; false accepts rebuilt files.
        **common: the keys of ``ArrayData`` and ``ImageData``.
    """

    torchvision_name: ClassVar[str] = "CIFAR10"
    archive_sha256: ClassVar[str] = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    label_key: str = "labels"
    names_key: str = "label_names"

    def arrays(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
        from torchvision import datasets

        facts = getattr(datasets, self.torchvision_name)
        folder = self.root / facts.base_folder
        files = [*facts.train_list, *facts.test_list, [facts.meta["filename"], facts.meta["md5"]]]
        by_hand = f"unpack {facts.filename} so that this folder exists"
        self.need(folder, [name for name, _ in files], by_hand, facts.base_folder)
        if self.verify:
            check_md5(folder, files)
        names = read_pickle(folder / facts.meta["filename"]).get(self.names_key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{folder / facts.meta['filename']} has no list {self.names_key!r}; bring another copy")
        return self._part(folder, facts.train_list), self._part(folder, facts.test_list), tuple(names)

    def fetch(self) -> None:
        """The archive into ``root``, its sha256 checked, and unpacked beside it."""
        from torchvision import datasets

        facts = getattr(datasets, self.torchvision_name)
        folder = self.root / facts.base_folder
        if folder.exists():
            raise FileExistsError(f"{folder.absolute()} exists and is not complete; remove it to download again")
        archive = download(facts.url, self.root / facts.filename, self.archive_sha256, MAX_BYTES)
        extract(archive, folder, max_files=100, max_bytes=MAX_BYTES, inside=facts.base_folder)

    def _part(self, folder: Path, files: list[list[str]]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self._batch(folder / name) for name, _ in files), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _batch(self, path: Path) -> tuple[Tensor, Tensor]:
        entry = read_pickle(path)
        for key in ("data", self.label_key):
            if key not in entry:
                raise ValueError(f"{path} has no entry {key!r}, only {', '.join(map(str, entry))}; bring another copy")
        data, labels = entry["data"], entry[self.label_key]
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
            shape = (data.dtype, data.shape) if isinstance(data, np.ndarray) else type(data).__name__
            raise ValueError(f"images in {path} are {shape}; a CIFAR batch holds uint8 [N, 3072]")
        if len(data) != len(labels):
            raise ValueError(f"{path} holds {len(data)} images but {len(labels)} labels; bring another copy")
        return torch.from_numpy(data).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


class CIFAR100(CIFAR10):
    """50,000 training and 10,000 test images of 100 classes in 20 groups, 32 px (Krizhevsky 2009).

    Args:
        seed: the run's seed.
        labels: ``fine`` (100 classes) or ``coarse`` (20 groups).
        **common: the keys of ``CIFAR10``; ``root`` holds ``cifar-100-python``.
    """

    torchvision_name = "CIFAR100"
    archive_sha256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"

    def __init__(
        self,
        seed: int = 0,
        *,
        labels: Literal["fine", "coarse"] = "fine",
        **common: Any,
    ) -> None:
        super().__init__(seed, **common)
        if labels not in ("fine", "coarse"):
            raise ValueError(f"data.labels is {labels!r}; choose fine or coarse")
        self.label_key, self.names_key = f"{labels}_labels", f"{labels}_label_names"
