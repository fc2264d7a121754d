"""Reading a tree of class folders: which files there are, and which class each belongs to."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from datamodules.decode import SUFFIXES
from datamodules.file_list import FileList


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders in ``folder``, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such folder, or no class folder in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder.absolute()}; expected {folder.name}/CLASS/IMAGE below data.root "
            f"= {folder.parent.absolute()}"
        )
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    if not names:
        raise FileNotFoundError(f"{folder.absolute()} holds no class folders; expected {folder.name}/CLASS/IMAGE")
    return names


def image_names(folder: Path) -> list[str]:
    """Names of the images that lie directly in ``folder``, sorted; one warning for other files."""
    kept: list[str] = []
    others: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name[0] == ".":
            continue
        if entry.is_dir():
            raise ValueError(
                f"{folder} holds the folder {entry.name!r}; images must lie directly in their class "
                "folder, move them up"
            )
        (kept if entry.name.lower().endswith(SUFFIXES) else others).append(entry.name)
    if others:
        warnings.warn(
            f"{folder}: {len(others)} files are not used, the first is {others[0]!r}; images are {', '.join(SUFFIXES)}",
            stacklevel=2,
        )
    return kept


def scan(folder: Path, classes: tuple[str, ...], allow_missing: bool = False) -> tuple[FileList, Tensor]:
    """Files and labels of ``folder/CLASS/IMAGE``, labels by the position of the class name in ``classes``.

    Args:
        folder: of one part of the set.
        classes: names from the training part.
        allow_missing: accept that some classes have no folder here.

    Raises:
        ValueError: a class that training does not know, one that is missing, or one without images.
    """
    found = class_names(folder)
    extra = [name for name in found if name not in set(classes)]
    missing = [] if allow_missing else [name for name in classes if name not in set(found)]
    if extra:
        raise ValueError(
            f"{folder} has class folders that the training part has not: {_some(extra)}; rename or remove them"
        )
    if missing:
        raise ValueError(
            f"{folder} has no folder for these classes of the training part: {_some(missing)}; "
            "add them, or set data.allow_missing_classes=true"
        )
    names: list[str] = []
    labels: list[int] = []
    position = {name: label for label, name in enumerate(classes)}
    for name in found:
        images = image_names(folder / name)
        if not images:
            raise ValueError(
                f"class folder {folder / name} holds no image ({', '.join(SUFFIXES)}); add images or remove the folder"
            )
        names += [f"{name}/{image}" for image in images]
        labels += [position[name]] * len(images)
    return FileList(folder, names), torch.tensor(labels, dtype=torch.int64)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
