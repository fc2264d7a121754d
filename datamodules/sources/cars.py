"""Cars196: 196 models of cars; the first 98 train, the others test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.disjoint_files import DisjointFiles, Listed, from_folders, from_rows
from datamodules.labels.list_file import ListFile
from datamodules.reading.folder_tree import need_root

ANNOTATIONS = "cars_annos.mat"


class Cars(DisjointFiles):
    """``cars_annos.mat`` with ``car_ims/``, or class folders: ``CLASS/IMAGE`` or ``{train,test}/CLASS/IMAGE``.

    Source: Krause, Stark, Deng, Fei-Fei (2013), "3D Object Representations for Fine-Grained Categorization", 3dRR
    workshop. The split is that of metric learning (Oh Song, Xiang, Jegelka, Savarese 2016, arXiv:1511.06452): classes
    1-98 with 8,054 photographs train, 99-196 with 8,131 test; the official split is not used, and no bounding box.
    Class folders are numbered by their sorted names, which divides the models at the same place as the published
    numbers: up to Eagle, from FIAT.

    Args:
        seed: the run's seed.
        **common: the keys of ``DisjointFiles``, ``ImageFiles`` and ``ImageData``.
    """

    def listed(self) -> tuple[Listed, Listed]:
        need_root(self.root, f"{ANNOTATIONS} and car_ims/, or class folders")
        whole = self._annotated() if (self.root / ANNOTATIONS).is_file() else self._folders()
        return whole.halves(len(whole.classes) // 2)

    def _folders(self) -> Listed:
        official = all((self.root / part).is_dir() for part in ("train", "test"))
        return from_folders(self.root, *(("train", "test") if official else ()))

    def _annotated(self) -> Listed:
        table, names = read_annotations(self.root / ANNOTATIONS)
        numbers = table.integers("class")
        for row, number in enumerate(numbers):
            if not 1 <= number <= len(names):
                table.refuse(row, f"class {number} is outside 1..{len(names)}")
        rows = table.images("relative_im_path", "class")
        return from_rows(self.root, rows, [number - 1 for number in numbers], names)


def read_annotations(path: Path) -> tuple[ListFile, tuple[str, ...]]:
    """Path and class number (from 1) of every image, and the names of the classes.

    Raises:
        ValueError: it is no MATLAB file of the layout that comes with the set.
    """
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path, squeeze_me=True, variable_names=["annotations", "class_names"])
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}; bring the published one") from error
    names, annotations = content.get("class_names"), content.get("annotations")
    fields = getattr(getattr(annotations, "dtype", None), "names", None) or ()
    if names is None or not {"relative_im_path", "class"} <= set(fields):
        raise ValueError(
            f"{path} has no class_names, or no annotations with relative_im_path and class; bring the published file"
        )
    assert annotations is not None
    columns = {name: [str(value) for value in annotations[name].reshape(-1)] for name in ("relative_im_path", "class")}
    lines = list(range(1, len(columns["class"]) + 1))
    return ListFile(path, columns, lines, "entry"), tuple(str(name) for name in names.reshape(-1))
