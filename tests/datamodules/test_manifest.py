"""The manifest changes with the data, and a difference is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.arrays import ArrayData
from datamodules.manifest import WHOLE_BYTES, manifest_difference
from datamodules.sources.folder import Folder
from datamodules.sources.labelled_files import LabelledFiles

pytestmark = pytest.mark.fault


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for part, count in (("train", 4), ("test", 2)):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4, 4), (i, 9, 9)).save(tmp_path / part / name / f"{i}.bmp")
                rows[part].append(f"{part}/{name}/{i}.bmp,{name}\n")
    for part, lines in rows.items():
        (tmp_path / f"{part}.csv").write_text("path,label\n" + "".join(lines))
    return tmp_path


def ready(kind: type[Any], root: Path) -> Any:
    data = kind(0, root=str(root), image_size=4, batch_size=2)
    data.setup()
    return data


def same_size(root: Path) -> None:
    Image.new("RGB", (4, 4), (200, 9, 9)).save(root / "test" / "b" / "1.bmp")


def touched(root: Path) -> None:
    (root / "test" / "b" / "1.bmp").touch()


def replace(root: Path, name: str, old: str, new: str) -> None:
    (root / name).write_text((root / name).read_text().replace(old, new))


def renamed_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "a").rename(root / part / "c")


OTHER = "before and now, but other files or labels"
FOLDER: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "nothing": (touched, []),
    "content": (same_size, [f"test: 4 {OTHER}"]),
    "one less": (lambda root: (root / "train/a/0.bmp").unlink(), ["train: 8 before, 7 now"]),
    "renamed": (lambda root: (root / "train/a/0.bmp").rename(root / "train/a/9.bmp"), [f"train: 8 {OTHER}"]),
    "class": (
        renamed_class,
        ["classes: 2 before and now, but other names, or another order", f"test: 4 {OTHER}", f"train: 8 {OTHER}"],
    ),
}


@pytest.mark.parametrize("case", FOLDER)
def test_folder(root: Path, case: str) -> None:
    before = ready(Folder, root)
    saved = before.manifest_parts()
    change, expected = FOLDER[case]
    change(root)
    now = ready(Folder, root)
    assert manifest_difference(saved, now.manifest_parts()) == expected
    assert (now.manifest == before.manifest) == (not expected)


def test_labelled_files(root: Path) -> None:
    before = ready(LabelledFiles, root)
    saved = before.manifest_parts()
    assert (
        saved["train"]["count"] == 8 and manifest_difference(saved, ready(LabelledFiles, root).manifest_parts()) == []
    )
    replace(root, "test.csv", "test/a/0.bmp,a", "test/a/0.bmp,b")
    changed = ready(LabelledFiles, root)
    assert changed.manifest != before.manifest
    assert manifest_difference(saved, changed.manifest_parts()) == ["test: 4 before and now, but other files or labels"]
    replace(root, "train.csv", "train/a/0.bmp,a\n", "")
    assert manifest_difference(saved, ready(LabelledFiles, root).manifest_parts())[1] == "train: 8 before, 7 now"


def test_large_sets_go_by_names_labels_and_sizes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WHOLE_BYTES == 128 * 2**20
    monkeypatch.setattr("datamodules.manifest.WHOLE_BYTES", 100)
    before = ready(Folder, root).manifest
    same_size(root)
    assert ready(Folder, root).manifest == before  # documented
    with (root / "test" / "b" / "1.bmp").open("ab") as file:
        file.write(b"x")
    assert ready(Folder, root).manifest != before


def test_arrays_name_the_part(tiny: type[ArrayData]) -> None:
    class Other(tiny):  # type: ignore[misc, valid-type]
        def arrays(self) -> Any:
            train, (test, labels), classes = super().arrays()
            return train, (test.flip(0), labels), classes

    saved, now = (kind(0, batch_size=10) for kind in (tiny, Other))
    saved.setup()
    now.setup()
    differences = manifest_difference(saved.manifest_parts(), now.manifest_parts())
    assert differences == ["test: 20 before and now, but other files or labels"]
    changed = {name: part for name, part in now.manifest_parts().items() if name != "test"}
    assert manifest_difference(saved.manifest_parts(), changed) == ["test: 20 before, absent now"]
