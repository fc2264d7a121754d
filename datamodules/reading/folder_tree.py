"""Reading a tree of class folders: which files there are, and which class each belongs to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datamodules.labels.unicode_form import differing_in_form, in_composed_form
from datamodules.reading.decode import SUFFIXES
from datamodules.reading.file_list import FileList
from datamodules.reading.walk import STRAY, LeftOut, contents

VALIDATION = ("val", "valid", "validation")


def need_root(root: Path, holding: str) -> None:
    """Refuse a root that is no folder.

    Args:
        root: ``data.root``.
        holding: what is expected in it.

    Raises:
        FileNotFoundError: saying both.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root.absolute()}; data.root must hold {holding}")


def class_names(folder: Path, left: LeftOut) -> tuple[str, ...]:
    """Names of the class folders in ``folder``, sorted; what else lies there is counted.

    Raises:
        FileNotFoundError: there is no such folder, or no class folder in it.
        ValueError: two of the names differ in their Unicode form only.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder.absolute()}; expected {folder.name}/CLASS/IMAGE below data.root "
            f"= {folder.parent.absolute()}"
        )
    names, strays = contents(folder, left)
    for name in strays:
        left.add(STRAY, str(folder / name))
    if not names:
        raise FileNotFoundError(f"{folder.absolute()} holds no class folders; expected {folder.name}/CLASS/IMAGE")
    if twins := differing_in_form(names):
        raise ValueError(
            f"{folder} has two folders for one class: {ascii(twins[0])} and {ascii(twins[1])} differ in their Unicode "
            "form only; put their images into one of them"
        )
    return tuple(names)


def image_names(folder: Path, left: LeftOut) -> list[str]:
    """Names of the images that lie directly in ``folder``, sorted; what else lies there is counted."""
    folders, images = contents(folder, left)
    if folders:
        raise ValueError(
            f"{folder} holds the folder {folders[0]!r}; images must lie directly in their class folder, move them up"
        )
    return images


def validation_folder(root: Path, asked: str | None, test_folder: str) -> Path | None:
    """The folder of the validation part; None where validation is to be split from training.

    Args:
        root: of the set.
        asked: its name. For ``val``, the default, ``valid`` and ``validation`` are taken as well, where they are no
            test part, and none needs to be there.
        test_folder: name of the test part.

    Raises:
        ValueError: there are several.
        FileNotFoundError: there is no folder of another name that was asked for.
    """
    if asked is None:
        return None
    names = [name for name in VALIDATION if name != test_folder] if asked == VALIDATION[0] else [asked]
    found = [name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise ValueError(
            f"{root} holds {found[0]}/ and {found[1]}/, and one of them is the validation part; remove or rename the "
            f"other, or set data.val_folder={found[1]}"
        )
    if not found and asked != VALIDATION[0]:
        raise FileNotFoundError(
            f"no folder {(root / asked).absolute()}; correct data.val_folder={asked}, or set data.val_folder=null to "
            "split validation from training"
        )
    return root / found[0] if found else None


def scan(folder: Path, classes: tuple[str, ...], allow_missing: bool = False) -> tuple[FileList, Tensor]:
    """Files and labels of ``folder/CLASS/IMAGE``, labels by the position of the class name in ``classes``.

    Names are compared in one Unicode form. One warning says what is left out, and how much.

    Args:
        folder: of one part of the set.
        classes: names from the training part.
        allow_missing: accept that some classes have no folder here.

    Raises:
        ValueError: a class that training does not know, one that is missing, or one without images.
    """
    left = LeftOut()
    found = class_names(folder, left)
    position = {in_composed_form(name): label for label, name in enumerate(classes)}
    own = {in_composed_form(name) for name in found}
    extra = [name for name in found if in_composed_form(name) not in position]
    missing = [] if allow_missing else [name for name in classes if in_composed_form(name) not in own]
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
    for name in found:
        images = image_names(folder / name, left)
        if not images:
            raise ValueError(
                f"class folder {folder / name} holds no image ({', '.join(SUFFIXES)}); add images or remove the folder"
            )
        names += [f"{name}/{image}" for image in images]
        labels += [position[in_composed_form(name)]] * len(images)
    left.warn(folder)
    return FileList(folder, names), torch.tensor(labels, dtype=torch.int64)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
