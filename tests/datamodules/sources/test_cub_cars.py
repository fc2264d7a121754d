"""CUB-200-2011 and Cars196 in small trees of their published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.disjoint_files import DisjointFiles
from datamodules.sources.cars import Cars
from datamodules.sources.cub import CUB

Ready = Callable[..., Any]


def picture(path: Path, value: int) -> None:
    """An image of one grey value, by which it is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), (value, value, value)).save(path)


def cub(root: Path) -> None:
    """4 classes of 3 images; ids and lines in no order."""
    names = {1: "001.Auk", 2: "002.Bunting", 3: "003.Crow", 4: "004.Duck"}
    number = {f"{name}/{i}.png": 10 * c + i for c, name in names.items() for i in range(3)}
    for name, value in number.items():
        picture(root / "images" / name, value)
    order = sorted(number, key=lambda name: name[::-1])
    (root / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(order, start=1)))
    lines = [f"{i} {number[name] // 10}\n" for i, name in enumerate(order, start=1)]
    (root / "image_class_labels.txt").write_text("".join(reversed(lines)))
    (root / "classes.txt").write_text("".join(f"{c} {name}\n" for c, name in reversed(names.items())))


def cars(root: Path) -> None:
    """``cars_annos.mat`` with 4 classes of 3 images, in no order."""
    from scipy.io import savemat

    numbers = [3, 1, 4, 2, 2, 1, 3, 4, 4, 1, 2, 3]
    kinds = [("relative_im_path", "O"), ("bbox_x1", "O"), ("class", "O"), ("test", "O")]
    rows = np.empty((1, len(numbers)), dtype=kinds)
    for i, number in enumerate(numbers):
        rows[0, i] = (f"car_ims/{i:06d}.png", 5, number, i % 2)
        picture(root / "car_ims" / f"{i:06d}.png", 10 * number + numbers[:i].count(number))
    names = np.array([["Acura RL", "BMW X5", "Ford GT", "smart fortwo"]], dtype=object)
    savemat(root / "cars_annos.mat", {"annotations": rows, "class_names": names})


@pytest.mark.parametrize(("kind", "make"), [(CUB, cub), (Cars, cars)])
def test_first_half_of_the_classes_trains(
    kind: type[DisjointFiles], make: Callable[[Path], None], tmp_path: Path, ready: Ready, values: Ready
) -> None:
    make(tmp_path)
    data = ready(kind, tmp_path)
    train, test = values(data.train_eval_dataloader()), values(data.test_dataloader())
    assert sorted(train["value"]) == [10, 11, 12, 20, 21, 22] and sorted(test["value"]) == [30, 31, 32, 40, 41, 42]
    assert train["label"] == [value // 10 - 1 for value in train["value"]]
    assert test["label"] == [value // 10 - 3 for value in test["value"]]
    expected = {
        CUB: (("001.Auk", "002.Bunting"), ("003.Crow", "004.Duck")),
        Cars: (("Acura RL", "BMW X5"), ("Ford GT", "smart fortwo")),
    }
    assert (data.classes, data.test_classes) == expected[kind] and data.test_is_query is None


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_cars_in_class_folders(parts: tuple[str, ...], tmp_path: Path, ready: Ready, values: Ready) -> None:
    for number, part in enumerate(parts):
        for c, name in enumerate(("AM General", "Eagle", "FIAT", "smart")):
            for i in range(2):
                picture(tmp_path / part / name / f"{part}{i}.png", 50 * c + 10 * number + i)
    data = ready(Cars, tmp_path)
    train, test = values(data.train_eval_dataloader()), values(data.test_dataloader())
    assert data.classes == ("AM General", "Eagle") and data.test_classes == ("FIAT", "smart")
    assert len(train["value"]) == len(test["value"]) == 4 * len(parts)
    assert train["label"] == [value // 50 for value in train["value"]]
    assert test["label"] == [value // 50 - 2 for value in test["value"]]


LABELS = "image_class_labels.txt"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images.txt", "001.Auk/0.png", "../0.png", "images.txt, line .*leaves data.root"),
        ("images.txt", "1 ", "99 ", "images.txt, line 1: image '99' has no line in image_class_labels.txt"),
        (LABELS, "12 3", "12 5", "image_class_labels.txt, line 1: class 5 is not in classes.txt"),
        (LABELS, "12 3\n", "", "image '12' has no line"),
        (LABELS, "12 3\n", "12 3\n77 1\n", "has 13 images and .*images.txt has 12"),
        (LABELS, "12 3\n", "12 3\n12 4\n", "line 2: '12' stands already on line 1"),
        ("classes.txt", "3 003.Crow", "4 003.Crow", "classes.txt, line 2: '4' stands already on line 1"),
        ("classes.txt", "4 ", "four ", "classes.txt, line 1: class id is 'four', expected a number"),
    ],
)
def test_wrong_lists(name: str, old: str, new: str, message: str, tmp_path: Path, ready: Ready) -> None:
    cub(tmp_path)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        ready(CUB, tmp_path)


@pytest.mark.fault
def test_wrong_annotations(tmp_path: Path, ready: Ready) -> None:
    from scipy.io import loadmat, savemat

    cars(tmp_path)
    path = tmp_path / "cars_annos.mat"
    content = {name: value for name, value in loadmat(path).items() if name[0] != "_"}
    rows = content["annotations"]

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ready(Cars, tmp_path)

    path.write_bytes(b"MATLAB 5.0" * 40)
    refused("cannot be read as a MATLAB file")
    savemat(path, {"annotations": rows})
    refused("has no class_names, or no annotations with relative_im_path and class")
    savemat(path, {**content, "annotations": np.zeros(3)})
    refused("has no class_names, or no annotations with relative_im_path and class")
    rows[0, 4]["class"] = 9
    savemat(path, content)
    refused("entry 5: class 9 is outside 1..4")
    rows[0, 4]["class"], rows[0, 4]["relative_im_path"] = 1, "../x.png"
    savemat(path, content)
    refused("entry 5: the path '../x.png' leaves data.root")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("kind", "make", "name", "message"),
    [
        (CUB, cub, "images/001.Auk/1.png", "images.txt, line .*there is no file .*1.png"),
        (CUB, cub, "classes.txt", "no file .*classes.txt"),
        (Cars, cars, "car_ims/000003.png", "cars_annos.mat, entry 4: there is no file"),
    ],
)
def test_absent_files(
    kind: type[DisjointFiles],
    make: Callable[[Path], None],
    name: str,
    message: str,
    tmp_path: Path,
    ready: Ready,
) -> None:
    make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        ready(kind, tmp_path)
