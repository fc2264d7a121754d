"""Stanford Online Products and In-Shop Clothes in small trees; the published counts of all four sets."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from datamodules.disjoint_files import DisjointFiles
from datamodules.sources.inshop import InShop
from datamodules.sources.sop import SOP

Ready = Callable[..., Any]
SETTINGS = Path(__file__).parents[3] / "configs" / "data"
LIST = "list_eval_partition.txt"
ROLES = [("id_2", "query"), ("id_1", "train"), ("id_3", "gallery"), ("id_2", "gallery"), ("id_4", "train"),
         ("id_3", "query"), ("id_1", "train"), ("id_2", "query"), ("id_4", "train"), ("id_3", "gallery")]  # fmt: skip


def picture(path: Path, value: int) -> None:
    """An image of one grey value, by which it is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), (value, value, value)).save(path)


def sop(root: Path) -> None:
    for part, numbers in (("train", (7, 9)), ("test", (30, 12))):
        rows = [(c, i) for c in numbers for i in range(3)]
        for c, i in rows:
            picture(root / "mug_final" / f"{c}_{i}.png", 5 * c + i)
        lines = [f"{n} {c} 8 mug_final/{c}_{i}.png\n" for n, (c, i) in enumerate(rows, start=1)]
        (root / f"Ebay_{part}.txt").write_text("image_id class_id super_class_id path\n" + "".join(lines))


def inshop(root: Path, listed: str = "", below: str = "") -> None:
    lines = [f"{len(ROLES)}\n", "image_name item_id evaluation_status\n"]
    for i, (item, role) in enumerate(ROLES):
        picture(root / below / "img" / "WOMEN" / item / f"{i}.png", 10 * int(item[-1]) + i)
        lines.append(f"img/WOMEN/{item}/{i}.png     {item}   {role}\n")
    (root / listed).mkdir(parents=True, exist_ok=True)
    (root / listed / LIST).write_text("".join(lines))


def test_sop(tmp_path: Path, ready: Ready, values: Ready) -> None:
    sop(tmp_path)
    data = ready(SOP, tmp_path)
    assert data.classes == ("7", "9") and data.test_classes == ("12", "30")
    found = values(data.train_eval_dataloader())
    assert found == {"value": [35, 36, 37, 45, 46, 47], "label": [0, 0, 0, 1, 1, 1]}
    found = values(data.test_dataloader())
    assert found == {"value": [150, 151, 152, 60, 61, 62], "label": [1, 1, 1, 0, 0, 0]}, "in the order of the list"


@pytest.mark.parametrize(("listed", "below"), [("", ""), ("Eval", "Img"), ("Eval", ""), ("", "Img")])
def test_inshop(listed: str, below: str, tmp_path: Path, ready: Ready, values: Ready) -> None:
    inshop(tmp_path, listed, below)
    data = ready(InShop, tmp_path)
    assert data.classes == ("id_1", "id_4") and data.test_classes == ("id_2", "id_3")
    assert values(data.train_eval_dataloader()) == {"value": [11, 44, 16, 48], "label": [0, 1, 0, 1]}
    assert values(data.test_dataloader()) == {"value": [20, 32, 23, 35, 27, 39], "label": [0, 1, 0, 1, 0, 1]}
    assert data.test_is_query.tolist() == [True, False, False, True, True, False]
    facts = {"train_classes": 2, "train": 4, "test_classes": 2, "test": 6, "query": 3}
    assert ready(InShop, tmp_path, expect=facts).manifest_parts()["test_is_query"]["count"] == 6
    with pytest.raises(ValueError, match=r"holds query 3, test 6, .*data.expect says query 4, test 6, .*complete the"):
        ready(InShop, tmp_path, expect={**facts, "query": 4})
    assert len(ready(InShop, tmp_path, limit_test=4).test_is_query) == 6, "by index, whatever the limit"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("kind", "name", "old", "new", "message"),
    [
        (SOP, "Ebay_train.txt", "image_id", "id", "the header is 'id class_id super_class_id path', expected"),
        (SOP, "Ebay_train.txt", "7_1.png", "7_0.png", "Ebay_train.txt, line 3: 'mug_final/7_0.png' stands already"),
        (SOP, "Ebay_test.txt", " 30 8", " 7 8", "1 classes are both in training and in test, the first is '7'"),
        (SOP, "Ebay_test.txt", " 30 8", " x 8", "Ebay_test.txt, line 2: class_id is 'x', expected a number"),
        (InShop, LIST, "query", "probe", "line 3: evaluation_status is 'probe'; expected train, query or gallery"),
        (InShop, LIST, "10\n", "11\n", "says that it has 11 rows and has 10"),
        (InShop, LIST, "id_1   train", "id_1   query", "both in training and in test, the first is 'id_1'"),
        (InShop, LIST, "img/WOMEN/id_2/0", "../0", "line 3: the path '../0.png' leaves data.root"),
    ],
)
def test_wrong_lists(
    kind: type[DisjointFiles], name: str, old: str, new: str, message: str, tmp_path: Path, ready: Ready
) -> None:
    {SOP: sop, InShop: inshop}[kind](tmp_path)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        ready(kind, tmp_path)


@pytest.mark.fault
def test_only_training_rows(tmp_path: Path, ready: Ready) -> None:
    (tmp_path / LIST).write_text("1\nimage_name item_id evaluation_status\nimg/a.png id_1 train\n")
    with pytest.raises(ValueError, match="has no rows of test; bring the whole file"):
        ready(InShop, tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize(("kind", "name"), [(SOP, "Ebay_test.txt"), (InShop, LIST)])
def test_absent_list(kind: type[DisjointFiles], name: str, tmp_path: Path, ready: Ready) -> None:
    {SOP: sop, InShop: inshop}[kind](tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
        ready(kind, tmp_path)


@pytest.mark.fault
def test_link_out_of_the_root(tmp_path: Path, ready: Ready) -> None:
    root = tmp_path / "set"
    root.mkdir()
    sop(root)
    picture(tmp_path / "outside.png", 1)
    (root / "mug_final" / "7_1.png").unlink()
    (root / "mug_final" / "7_1.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match="Ebay_train.txt, line 3: .*outside data.root"):
        ready(SOP, root)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cub", (100, 5864, 100, 5924)),
        ("cars", (98, 8054, 98, 8131)),
        ("sop", (11318, 59551, 11316, 60502)),
        ("inshop", (3997, 25882, 3985, 14218 + 12612)),
    ],
)
def test_published_counts(name: str, published: tuple[int, ...], tmp_path: Path, ready: Ready) -> None:
    """From the declared facts where there are no images: networks and schedules can be built."""
    settings = yaml.safe_load((SETTINGS / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, kind = settings["_target_"].rpartition(".")
    kind, facts = getattr(import_module(module), kind), settings["expect"]
    assert tuple(facts[key] for key in ("train_classes", "train", "test_classes", "test")) == published
    data = ready(kind, tmp_path / "absent", expect=facts)
    assert (data.num_classes, data.num_train, len(data.test_classes)) == published[:3]
    assert len(ready(kind, tmp_path / "absent", expect=facts, val_fraction=0.1).val_classes) == round(published[0] / 10)
    with pytest.raises(FileNotFoundError, match="no folder .*absent; .*data.root=FOLDER says where the images are"):
        next(iter(data.train_dataloader()))
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        ready(kind, tmp_path / "absent", expect=None)


def test_a_set_that_is_not_complete(tmp_path: Path, ready: Ready) -> None:
    sop(tmp_path)
    facts = {"train_classes": 2, "train": 7, "test_classes": 2, "test": 6}
    with pytest.raises(
        ValueError, match="train 6, .*data.expect says .*train 7, .*complete the set, or set data.expect"
    ):
        ready(SOP, tmp_path, expect=facts)
    with pytest.raises(
        ValueError, match="data.expect=.* a number for each of train_classes, train, test_classes, test"
    ):
        ready(SOP, tmp_path, expect={"train": 3})
    with pytest.raises(ValueError, match="allow_missing_classes=true means nothing to SOP"):
        ready(SOP, tmp_path, allow_missing_classes=True)
