"""Label files: what is accepted, and the line of everything that is not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.labels.label_classes import class_list, to_labels
from datamodules.labels.label_paths import Inside
from datamodules.labels.label_rows import read_rows
from datamodules.sources.labelled_files import LabelledFiles

pytestmark = pytest.mark.fault
TRAIN = [("x/0.png", "pear"), ("x/1.png", "apple"), ("x/2.png", "pear"), ("y z/3.png", "apple"), ("4.png", "fig")]
TEST = [("t/0.png", "fig"), ("t/1.png", "pear"), ("t/2.png", "apple")]


def table(rows: list[tuple[str, Any]], header: str = "path,label", end: str = "\n") -> str:
    return end.join([header, *(f"{path},{label}" for path, label in rows)]) + end


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number, (path, _) in enumerate([*TRAIN, *TEST]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), 20 * number, dtype=np.uint8)).save(root / path)
    (root / "train.csv").write_text(table(TRAIN))
    (root / "test.csv").write_text(table(TEST))
    return root


def ready(root: Path, **keys: Any) -> LabelledFiles:
    settings = {"image_size": 8, "batch_size": 2, "eval_batch_size": 4, "val_fraction": 0.0}
    data = LabelledFiles(0, root=str(root), **{**settings, **keys})
    data.setup()
    return data


def test_order_labels_and_images(root: Path) -> None:
    data = ready(root)
    assert data.classes == ("apple", "fig", "pear") and data.train_labels.tolist() == [2, 0, 2, 0, 1]
    assert [data.files["train"].name(i) for i in range(5)] == [path for path, _ in TRAIN]
    (batch,) = data.test_dataloader()
    assert batch.label.tolist() == [1, 2, 0] and batch.index.tolist() == [0, 1, 2]
    assert [round(float(image[0, 4, 4] * 255)) for image in batch.image] == [100, 120, 140]
    seen = torch.cat([batch.index for batch in ready(root, num_workers=1).train_dataloader()])
    assert len(set(seen.tolist())) == 4  # drop_last


@pytest.mark.parametrize(
    "form", ["bom", "crlf", "cr", "quoted", "columns", "empty lines", "json", "JSON", "no last end"]
)
def test_the_same_table_in_many_forms(root: Path, form: str) -> None:
    quoted = [(f'"{path}"', f" {label} ") for path, label in TRAIN]
    objects = [{"path": path, "label": label, "more": 1} for path, label in TRAIN]
    text: dict[str, str] = {
        "bom": "\ufeff" + table(TRAIN),
        "crlf": table(TRAIN, end="\r\n"),
        "cr": table(TRAIN, end="\r"),
        "quoted": table(quoted),
        "columns": "more,label,path\n" + "".join(f"1,{label},{path}\n" for path, label in TRAIN),
        "empty lines": table(TRAIN, end="\n\n"),
        "json": json.dumps(objects),
        "JSON": "\ufeff" + json.dumps(objects, indent=1),
        "no last end": table(TRAIN).rstrip(),
    }
    name = f"rows.{form}" if "json" in form.lower() else "rows.csv"
    (root / name).write_bytes(text[form].encode())
    data = ready(root, train=name)
    assert data.classes == ("apple", "fig", "pear") and data.train_labels.tolist() == [2, 0, 2, 0, 1]


WRONG_ROWS: dict[str, tuple[str, str]] = {
    "no header": ("x/0.png,pear\n", "line 1: the header is 'x/0.png,pear'; it must name path and label"),
    "column twice": ("path,label,label\n", "line 1: the header"),
    "nothing": ("", "line 1: the header is ''"),
    "only a header": ("path,label\n", "has no rows"),
    "cell missing": ("path,label\nx/0.png,a\nx/1.png\n", "line 3: 1 cells, but the header has 2"),
    "empty path": ("path,label\n,a\n", "line 2: the path is empty"),
    "empty label": ("path,label\nx/0.png,a\nx/1.png, \n", "line 3: the label is missing"),
    "twice": (table([*TRAIN, TRAIN[1]]), "line 7: 'x/1.png' stands already on line 3; keep one"),
    "up": ("path,label\nx/../../secret.png,a\n", r"line 2: the path 'x/../../secret.png' leaves data.root"),
    "just up": ("path,label\n..,a\n", "line 2: .* leaves data.root"),
    "absolute": ("path,label\n/etc/passwd,a\n", "line 2: the path '/etc/passwd' is absolute"),
    "drive": ("path,label\nC:/x.png,a\n", "line 2: .* is absolute"),
    "backslash": ("path,label\nx\\0.png,a\n", "line 2: .* has a backslash; write /"),
    "detour": ("path,label\nx/../x/0.png,a\n", "line 2: .* has a shorter spelling; write 'x/0.png'"),
    "dot": ("path,label\n./x/0.png,a\n", "line 2: .* has a shorter spelling; write 'x/0.png'"),
    "NUL": ("path,label\nx/0\0.png,a\n", r"line 2: the path 'x/0\\x00.png' has a control character"),
    "NUL in a label": ("path,label\nx/0.png,a\0\n", "line 2: the label .* has control characters"),
    "long path": (
        f"path,label\n{'d/' * 600}x.png,a\n",
        "line 2: the path .* has 1205 bytes; at most 1024, 255 for each",
    ),
    "long name": (f"path,label\n{'é' * 130}.png,a\n", "line 2: the path .* has 264 bytes; at most 1024, 255 for each"),
    "open quote": (
        'path,label\nx/0.png,a\n"x/1.png,a\nx/2.png,a\n',
        "line 3: unexpected end of data; correct the quotes",
    ),
    "quote over lines": ('path,label\nx/0.png,"a\nb"\n', "line 2: a quote that is opened here is not closed"),
    "long cell": (f"path,label\nx/0.png,a\nx/1.png,{'a' * 200_000}\n", "line 3: field larger than field limit"),
    "not UTF-8": ("path,label\nx/0.png,a\nx/1.png,\udcff\n", "line 3: not UTF-8"),
    "missing file": (table([*TRAIN, ("x/9.png", "fig")]), "line 7: there is no file .*x/9.png; correct the path"),
    "a folder": (table([*TRAIN, ("x", "fig")]), "line 7: there is no file .*images/x;"),
    "negative": (
        "path,label\nx/0.png,0\nx/1.png,-1\n",
        "line 3: the label '-1' is no class number; .* name all classes",
    ),
    "float": ("path,label\nx/0.png,0\nx/1.png,1.0\n", "line 3: the label '1.0' is no class number"),
    "exponent": ("path,label\nx/0.png,0\nx/1.png,1e3\n", "line 3: the label '1e3' is no class number"),
    "two spellings": (
        "path,label\nx/0.png,1\nx/1.png,01\n",
        "line 3: the label '01' is the number of '1'; write it one way, or name all classes in data.classes",
    ),
    "huge": (f"path,label\nx/0.png,0\nx/1.png,{'9' * 300}\n", "line 3: the label '9+' has .* more than 255 characters"),
    "name among numbers": ("path,label\nx/0.png,0\nx/1.png,nan\n", "line 3: the label 'nan' is a name, but line 2 has"),
    "number among names": ("path,label\nx/0.png,a\nx/1.png,7\n", "line 3: the label '7' is a number, but line 2 has"),
    "Unicode form": (
        "path,label\nx/0.png,caf\u00e9\nx/1.png,cafe\u0301\n",
        r"line 3: the label .* is 'cafe\\u0301' and differs from 'caf\\xe9' in its Unicode form only",
    ),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows_are_named_by_line(root: Path, case: str) -> None:
    text, message = WRONG_ROWS[case]
    (root / "rows.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises((ValueError, FileNotFoundError), match=f"rows.csv.*{message}"):
        ready(root, train="rows.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"path": "x/0.png",\n "label": }]', "line 2: no json: Expecting value"),
        ("[" * 100_000, "no json that can be read"),
        ("{}", "holds no list"),
        ('[{"path": "x/0.png", "label": "a"}, {"path": "x/1.png"}]', "entry 2: expected an object with the keys"),
        ('[{"path": "x/0.png", "label": 0}, {"path": "x/1.png", "label": true}]', "entry 2: the label True is neither"),
        ('[{"path": "x/0.png", "label": 0}, {"path": "x/1.png", "label": 1.0}]', "entry 2: the label 1.0 is neither"),
        ('[{"path": "x/0.png", "label": 0}, {"path": "x/1.png", "label": null}]', "entry 2: the label is missing"),
        ('[{"path": "x/0.png", "label": 0}, {"path": "x/1.png", "label": -1}]', "entry 2: the label -1 is no class"),
        (
            '[{"path": "x/0.png", "label": "a"}, {"path": "x/1.png", "label": 1}]',
            "entry 2: the label 1 is a number, but",
        ),
        (f'[{{"path": "x/0.png", "label": {"9" * 300}}}]', "entry 1: the label '9+' has .* more than 255 characters"),
        ('[{"path": 7, "label": 0}]', "entry 1: the path is 7, not text"),
        (r'[{"path": "\ud800.png", "label": 0}]', "entry 1: .* is not valid Unicode"),
    ],
)
def test_wrong_json(root: Path, content: str, message: str) -> None:
    (root / "rows.json").write_text(content)
    with pytest.raises(ValueError, match=f"rows.json.*{message}"):
        ready(root, train="rows.json")


def test_other_files_are_no_label_files(root: Path) -> None:
    (root / "train.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="train.pkl is neither .csv nor .json"):
        ready(root, train="train.pkl")
    with pytest.raises(FileNotFoundError, match="no label file .*none.csv"):
        ready(root, val="none.csv")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; data.root must hold the images"):
        ready(root / "nowhere")


@pytest.mark.parametrize("link", ["file", "folder", "dangling"])
def test_symbolic_links_stay_inside(root: Path, link: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (9, 9)).save(outside / "5.png")
    path = {"file": "x/5.png", "folder": "out/5.png", "dangling": "x/5.png"}[link]
    target = {"file": outside / "5.png", "folder": outside, "dangling": root / "x" / "7.png"}[link]
    (root / "out" if link == "folder" else root / path).symlink_to(target)
    (root / "rows.csv").write_text(table([*TRAIN, (path, "fig")]))
    expected = "is a link to no file" if link == "dangling" else r"through a symbolic link, .*outside data.root"
    with pytest.raises((ValueError, FileNotFoundError), match=f"rows.csv, line 7: .*{expected}"):
        ready(root, train="rows.csv")


def test_links_inside_the_root_and_a_root_that_is_a_link(root: Path) -> None:
    (root / "linked").symlink_to(root / "x")
    (root / "x" / "same.png").symlink_to(root / "x" / "0.png")
    (root / "rows.csv").write_text(table([*TRAIN, ("linked/1.png", "fig"), ("x/same.png", "fig")]))
    (root.parent / "alias").symlink_to(root)
    assert ready(root.parent / "alias", train="rows.csv").num_train == 7


def test_integers_and_given_classes(root: Path) -> None:
    numbers = {"pear": 2, "apple": 0, "fig": 1}
    (root / "n.csv").write_text(table([(path, numbers[label]) for path, label in TRAIN]))
    (root / "t.csv").write_text(table([(path, numbers[label]) for path, label in TEST]))
    data = ready(root, train="n.csv", test="t.csv")
    assert data.classes == ("0", "1", "2") and data.train_labels.tolist() == [2, 0, 2, 0, 1]
    with pytest.raises(ValueError, match="test.csv, line 2: the label 'fig' is not one of the 3 classes of training"):
        ready(root, train="n.csv")
    named = ready(root, train="n.csv", classes=["apple", "fig", "pear"])
    assert named.classes == ("apple", "fig", "pear") and torch.equal(named.test_labels, ready(root).test_labels)
    assert ready(root, classes=["pear", "fig", "apple"]).train_labels.tolist() == [0, 2, 0, 2, 1]
    with pytest.raises(ValueError, match="train.csv has no image of these classes: 'kiwi'; add some"):
        ready(root, classes=["pear", "fig", "apple", "kiwi"])
    for wrong in (["pear", "pear"], [], [1998, 2002]):
        with pytest.raises(ValueError, match="data.classes must be a list of different names, .* in quotes"):
            ready(root, classes=wrong)


LOOKS_LIKE_NUMBERS = {
    "leading zeros": ({"pear": "0002", "apple": "0010", "fig": "0001"}, ("0001", "0002", "0010")),
    "years": ({"pear": "1998", "apple": "2010", "fig": "984"}, ("984", "1998", "2010")),
    "from 1": ({"pear": "2", "apple": "10", "fig": "1"}, ("1", "2", "10")),
    "a gap": ({"pear": "0", "apple": "9", "fig": "999"}, ("0", "9", "999")),
    "long ids": ({"pear": "9" * 30, "apple": "8" * 40, "fig": "7"}, ("7", "9" * 30, "8" * 40)),
}


@pytest.mark.parametrize("form", ["csv", "text in json", "numbers in json"])
@pytest.mark.parametrize("case", LOOKS_LIKE_NUMBERS)
def test_class_names_may_look_like_numbers(root: Path, case: str, form: str) -> None:
    names, classes = LOOKS_LIKE_NUMBERS[case]
    if form == "numbers in json":
        names = {name: str(int(number)) for name, number in names.items()}
        classes = tuple(str(int(name)) for name in classes)
    for part, rows in (("train", TRAIN), ("test", TEST)):
        pairs = [(path, names[label]) for path, label in rows]
        if form == "csv":
            (root / f"{part}.csv").write_text(table(pairs))
        entries = [{"path": path, "label": int(label) if "numbers" in form else label} for path, label in pairs]
        (root / f"{part}.json").write_text(json.dumps(entries))
    suffix = form.split()[-1]
    for keys in ({}, {"classes": list(classes)}):
        data = ready(root, train=f"train.{suffix}", test=f"test.{suffix}", **keys)
        assert data.classes == classes
        assert [classes[label] for label in data.train_labels.tolist()] == [names[label] for _, label in TRAIN]
        assert [classes[label] for label in data.test_labels.tolist()] == [names[label] for _, label in TEST]


def test_given_classes_take_whatever_stands_among_them(root: Path) -> None:
    """Numbers among names, signs, fractions: refused as likely mistakes, and accepted where the list names them."""
    names = {"pear": "911", "apple": "-1", "fig": "1.0"}
    for part, rows in (("train", TRAIN), ("test", TEST)):
        (root / f"{part}.csv").write_text(table([(path, names[label]) for path, label in rows]))
    with pytest.raises(ValueError, match="train.csv, line 3: the label '-1' is no class number; .* in data.classes"):
        ready(root)
    data = ready(root, classes=["-1", "1.0", "911"])
    assert data.train_labels.tolist() == [2, 0, 2, 0, 1] and data.test_labels.tolist() == [1, 2, 0]
    (root / "n.csv").write_text(table([(path, number) for number, (path, _) in enumerate(TRAIN[:3])]))
    with pytest.raises(
        ValueError, match="label '0' is not one of the 3 classes in data.classes; since '-1' is one, lab"
    ):
        ready(root, train="n.csv", classes=["-1", "1.0", "911"])
    with pytest.raises(ValueError, match=r"label '911' is outside 0..2 \(3 classes in data.classes\)"):
        ready(root, classes=["pear", "apple", "fig"])


def test_json_text_is_never_a_number(root: Path) -> None:
    names = {"pear": "911", "apple": "cayenne", "fig": "-1"}
    for part, rows in (("train", TRAIN), ("test", TEST)):
        entries = [{"path": path, "label": names[label]} for path, label in rows]
        (root / f"{part}.json").write_text(json.dumps(entries))
    assert ready(root, train="train.json", test="test.json").classes == ("-1", "911", "cayenne")


def test_labels_of_another_unicode_form_are_the_same_name(root: Path) -> None:
    """macOS writes an accent as a character of its own; a list from there beside one from elsewhere."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (root / "train.csv").write_text(table([(path, label.replace("fig", composed)) for path, label in TRAIN]))
    (root / "test.csv").write_text(table([(path, label.replace("fig", decomposed)) for path, label in TEST]))
    data = ready(root)
    assert data.classes == ("apple", composed, "pear") and data.test_labels.tolist() == [1, 2, 0]
    (root / decomposed).mkdir()
    (root / "4.png").rename(root / decomposed / "4.png")
    (root / "train.csv").write_text(table([*TRAIN[:4], (f"{composed}/4.png", composed)]))
    with pytest.raises(
        FileNotFoundError, match=r"'cafe\\u0301/4.png' on the disk differs from 'caf\\xe9/4.png' in its"
    ):
        ready(root)


def test_other_parts_are_mapped_by_name(root: Path) -> None:
    (root / "few.csv").write_text(table(TEST[1:]))
    with pytest.raises(ValueError, match="few.csv has no image of these classes: 'fig'; .*allow_missing_classes=true"):
        ready(root, test="few.csv")
    assert ready(root, test="few.csv", allow_missing_classes=True).test_labels.tolist() == [2, 0]
    (root / "more.csv").write_text(table([*TEST[:2], ("t/2.png", "aple")]))
    with pytest.raises(ValueError, match=r"line 4: the label 'aple' is not one of the 3 classes.*mean 'apple'"):
        ready(root, test="more.csv")
    (root / "n.csv").write_text(table([("t/0.png", 0), ("t/1.png", 1), ("t/2.png", 3)]))
    with pytest.raises(ValueError, match=r"line 4: the label '3' is outside 0..2 \(3 classes in"):
        ready(root, test="n.csv", classes=["apple", "fig", "pear"])


def test_validation_part_and_images_in_two_parts(root: Path) -> None:
    (root / "val.csv").write_text(table(TEST[:2]))
    with pytest.raises(
        ValueError, match=r"val.csv, line 2: 't/0.png' stands in .*test.csv, line 2 too; an image belongs"
    ):
        ready(root, val="val.csv", allow_missing_classes=True)
    (root / "rest.csv").write_text(table(TEST[2:]))
    data = ready(root, val="val.csv", test="rest.csv", allow_missing_classes=True)
    assert data.split_record()["counts"] == {"train": 5, "val": 2, "test": 1} and data.val_labels is not None
    assert data.val_labels.tolist() == [1, 2]


@pytest.mark.slow
def test_a_million_rows_in_seconds(tmp_path: Path) -> None:
    lines = "".join(f"c{i % 1000:03d}/image_{i:07d}.jpg,class {i % 1000:03d}\n" for i in range(1_000_000))
    (tmp_path / "rows.csv").write_text("path,label\n" + lines)
    start = time.process_time()
    rows = read_rows(tmp_path / "rows.csv")
    labels = to_labels(rows, class_list(rows, None))
    assert time.process_time() - start < 20  # 3 s on one core
    assert len(labels) == 1_000_000 and labels[[0, 1001, 999_999]].tolist() == [0, 1, 999]
    assert rows.where(999_999).endswith("rows.csv, line 1000001")


def test_links_are_looked_at_once_for_each_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[Path] = []
    original = Path.resolve

    def resolve(self: Path, strict: bool = False) -> Path:
        resolved.append(self)
        return original(self, strict)

    (root / "rows.csv").write_text("path,label\n" + "".join(f"many/{i}.png,a\n" for i in range(500)))
    (root / "many").mkdir()
    for i in range(500):
        os.link(root / "4.png", root / "many" / f"{i}.png")
    monkeypatch.setattr(Path, "resolve", resolve)
    Inside(root).check(read_rows(root / "rows.csv"))
    assert len(resolved) == 2
