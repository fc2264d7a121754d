"""Class folders some of which are for the test only, and the Grocery Store lists with both of its splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.sources.folder_disjoint import FolderDisjoint
from datamodules.sources.grocery_store import GroceryStore

Ready = Callable[..., Any]
REAL = os.environ.get("DATA_ROOT", "")
NAMES = ("Apple", "Pear", "Milk", "Leek", "Onion")


def picture(path: Path, value: int) -> None:
    """An image of one grey value, by which it is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), (value, value, value)).save(path)


def grocery_txt(root: Path) -> None:
    """The published spelling of the lists; validation lacks a class."""
    rows = ["Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str)"]
    rows += [f"{name},{c},Coarse,0,/iconic/{name}.jpg" for c, name in enumerate(NAMES)]
    (root / "classes.csv").write_text("\n".join(rows) + "\n")
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for c, name in enumerate(NAMES):
            for i in range(0 if part == "val" and c == 3 else 2):
                picture(root / part / "Fruit" / name / f"{name}_{i}.png", 40 * c + 10 * number + i)
                lines.append(f"{part}/Fruit/{name}/{name}_{i}.png, {c}, 0")
        (root / f"{part}.txt").write_text("\n".join(lines) + "\n")


def grocery_csv(root: Path) -> None:
    grocery_txt(root)
    (root / "classes.csv").unlink()
    (root / "classes.json").write_text('{"fine": ["Apple", "Pear", "Milk", "Leek", "Onion"], "coarse": []}')
    for part in ("train", "val", "test"):
        text = (root / f"{part}.txt").read_text().replace(", ", ",")
        (root / f"{part}.csv").write_text("path,fine,coarse\n" + text)
        (root / f"{part}.txt").unlink()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 3), (0.2, 4), (0.6, 2)])
def test_last_class_folders_test(share: float, expected: int, tmp_path: Path, ready: Ready, values: Ready) -> None:
    names = ("a", "b", "c", "d", "e")
    for c, name in enumerate(names):
        picture(tmp_path / name / "0.png", c)
    data = ready(FolderDisjoint, tmp_path, test_classes=share)
    assert data.classes == names[:expected] and data.test_classes == names[expected:]
    assert values(data.test_dataloader()) == {"value": list(range(expected, 5)), "label": list(range(5 - expected))}


def test_folders_say_which_classes_test(tmp_path: Path, ready: Ready, values: Ready) -> None:
    for c, name in enumerate(("train/p", "train/a", "test/b", "test/q", "test/r")):
        picture(tmp_path / name / "0.png", c)
    data = ready(FolderDisjoint, tmp_path)
    assert (data.classes, data.test_classes, data.val_classes) == (("a", "p"), ("b", "q", "r"), ())
    picture(tmp_path / "val" / "m" / "0.png", 9)
    data = ready(FolderDisjoint, tmp_path, val_fraction=0.5)
    assert (data.classes, data.val_classes) == (("a", "p"), ("m",)), "a validation part of its own: nothing is held out"
    assert values(data.val_dataloader()) == {"value": [9], "label": [0]}
    assert data.manifest_parts()["val_classes"]["count"] == 1 and data.split_record()["val_fraction"] is None
    best = ready(FolderDisjoint, tmp_path, select_on="test_best")
    assert best.manifest == data.manifest and best.classes_of("val") == ("b", "q", "r")
    assert values(best.val_dataloader()) == values(data.test_dataloader())
    picture(tmp_path / "val" / "q" / "0.png", 9)
    with pytest.raises(ValueError, match="1 classes are both in test and in validation, the first is 'q'"):
        ready(FolderDisjoint, tmp_path)


def test_validation_folder_of_another_name_and_one_class_in_two_unicode_forms(
    tmp_path: Path, ready: Ready, values: Ready
) -> None:
    for c, name in enumerate(("train/a", "test/b", "valid/m")):
        picture(tmp_path / name / "0.png", c)
    data = ready(FolderDisjoint, tmp_path)
    assert data.val_classes == ("m",) and values(data.val_dataloader()) == {"value": [2], "label": [0]}
    picture(tmp_path / "val" / "m" / "0.png", 9)
    with pytest.raises(ValueError, match="holds val/ and valid/, and one of them is the validation part"):
        ready(FolderDisjoint, tmp_path)
    picture(tmp_path / "train" / "caf\u00e9" / "0.png", 9)
    (tmp_path / "val").rename(tmp_path / "test" / "cafe\u0301")
    (tmp_path / "test" / "cafe\u0301" / "m" / "0.png").rename(tmp_path / "test" / "cafe\u0301" / "0.png")
    (tmp_path / "test" / "cafe\u0301" / "m").rmdir()
    with pytest.raises(ValueError, match="1 classes are both in training and in test, the first is 'caf\u00e9'"):
        ready(FolderDisjoint, tmp_path)


def test_validation_holds_out_classes_of_files(tmp_path: Path, ready: Ready, values: Ready) -> None:
    for c in range(8):
        for i in range(3):
            picture(tmp_path / f"c{c}" / f"{i}.png", 10 * c + i)
    data = ready(FolderDisjoint, tmp_path, val_fraction=0.5, samples_per_class=1, num_workers=1)
    assert len(data.classes) == len(data.val_classes) == 2
    for loader, names in ((data.train_eval_dataloader(), data.classes), (data.val_dataloader(), data.val_classes)):
        found = values(loader)
        assert [names[label] for label in found["label"]] == [f"c{value // 10}" for value in found["value"]]
        assert len(found["value"]) == 6
    for batch in data.train_dataloader():
        assert batch.label.sort().values.tolist() == [0, 1]
    whole = ready(FolderDisjoint, tmp_path, val_fraction=0.0)
    assert whole.manifest == data.manifest and len(whole.classes) == 4


@pytest.mark.parametrize("make", [grocery_txt, grocery_csv])
def test_grocery_store(make: Callable[[Path], None], tmp_path: Path, ready: Ready, values: Ready) -> None:
    make(tmp_path)
    official = ready(GroceryStore, tmp_path, split="official", allow_missing_classes=True)
    assert official.classes == official.test_classes == official.val_classes == NAMES
    found = values(official.train_eval_dataloader())
    assert found["value"] == [0, 1, 40, 41, 80, 81, 120, 121, 160, 161]
    found = values(official.val_dataloader())
    assert found == {"value": [10, 11, 50, 51, 90, 91, 170, 171], "label": [0, 0, 1, 1, 2, 2, 4, 4]}
    with pytest.raises(ValueError, match="val.* has no image of these classes: 'Leek'; add some, or set"):
        ready(GroceryStore, tmp_path, split="official")
    data = ready(GroceryStore, tmp_path, split="classes")
    train, test = values(data.train_eval_dataloader()), values(data.test_dataloader())
    assert data.classes == NAMES[:3] and data.test_classes == NAMES[3:]
    assert sorted(train["value"]) == [c + part + i for c in (0, 40, 80) for part in (0, 10, 20) for i in (0, 1)]
    assert train["label"] == [value // 40 for value in train["value"]]
    assert sorted(test["value"]) == [120, 121, 140, 141, 160, 161, 170, 171, 180, 181]
    assert test["label"] == [value // 40 - 3 for value in test["value"]]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("make", "name", "old", "new", "message"),
    [
        (grocery_txt, "val.txt", "Apple_0.png, 0", "Apple_0.png, 5", "val.txt, line 1: class 5 is outside 0..4"),
        (grocery_txt, "val.txt", "val/Fruit", "train/Fruit", "stands in .*train.txt, line 1 too"),
        (grocery_txt, "val.txt", "val/Fruit", "../val/Fruit", "val.txt, line 1: the path .* leaves data.root"),
        (grocery_txt, "classes.csv", "Pear,1", "Pear,2", "expected class 1 in its order, got 'Pear,2"),
        (grocery_csv, "classes.json", "fine", "rough", "has no list 'fine' of class names"),
        (grocery_csv, "classes.json", "]}", "]", "no json that can be read"),
        (grocery_csv, "test.csv", "fine", "label", "the header is 'path label coarse', expected"),
    ],
)
def test_wrong_lists(
    make: Callable[[Path], None], name: str, old: str, new: str, message: str, tmp_path: Path, ready: Ready
) -> None:
    make(tmp_path)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        ready(GroceryStore, tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (grocery_txt, "classes.csv", "no file .*classes.csv"),
        (grocery_txt, "train.txt", "no file .*train.txt"),
        (grocery_csv, "val/Fruit/Pear/Pear_0.png", "val.csv, line 4: there is no file"),
    ],
)
def test_absent_files(make: Callable[[Path], None], name: str, message: str, tmp_path: Path, ready: Ready) -> None:
    make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        ready(GroceryStore, tmp_path)


def test_wrong_settings(tmp_path: Path, ready: Ready) -> None:
    picture(tmp_path / "a" / "0.png", 1)
    with pytest.raises(ValueError, match="test_classes=1.0 is out of range; allowed: 0 < test_classes < 1"):
        ready(FolderDisjoint, tmp_path, test_classes=1.0)
    with pytest.raises(ValueError, match="data.test_classes=0.01 of the 1 classes in .* are 0; both parts"):
        ready(FolderDisjoint, tmp_path, test_classes=0.01)
    with pytest.raises(FileNotFoundError, match="no folder .*absent; data.root must hold CLASS/IMAGE"):
        ready(FolderDisjoint, tmp_path / "absent")
    with pytest.raises(ValueError, match="data.split is 'half'; choose official or classes"):
        ready(GroceryStore, tmp_path, split="half")
    with pytest.raises(FileNotFoundError, match="no folder .*absent; data.root must hold train.txt, val.txt, test.txt"):
        ready(GroceryStore, tmp_path / "absent")


@pytest.mark.skipif(
    not (Path(REAL) / "grocery").is_dir() or not REAL, reason="set DATA_ROOT to a folder that holds grocery"
)
def test_real_grocery_store(ready: Ready) -> None:
    root = Path(REAL) / "grocery"
    official = ready(GroceryStore, root, split="official", allow_missing_classes=True)
    assert official.split_record()["counts"] == {"train": 2640, "val": 296, "test": 2485} and official.num_classes == 81
    data = ready(GroceryStore, root, split="classes")
    assert (data.num_classes, len(data.test_classes)) == (41, 40)
    assert data.num_train + len(data.test_labels) == 5421
    for position in range(0, len(data.test_labels), 97):
        folder = data.files["test"][position].parent.name
        assert folder == data.test_classes[int(data.test_labels[position])]
