"""GTSRB: torchvision's files and labels, at one size; lists and folders that are not what they should be."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from datamodules.reading.download import file_sha256
from datamodules.sources import gtsrb
from datamodules.sources.gtsrb import ARCHIVES, GTSRB, TEST, TRAIN, TRUTH

REAL = os.environ.get("DATA_ROOT", "")
HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"


def picture(path: Path, seed: int) -> None:
    """Larger than 32 px and no square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40 + seed % 5, 44 + seed % 3, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """3 classes with 4 training images each, 6 test images; lists beside the images, as in the archives."""
    base = tmp_path / "gtsrb"
    for label in range(3):
        for frame in range(4):
            picture(base / TRAIN / f"{label:05d}" / f"00000_{frame:05d}.ppm", 10 * label + frame)
        (base / TRAIN / f"{label:05d}" / f"GT-{label:05d}.csv").write_text(HEADER)
    (base / TRAIN / "Readme.txt").write_text("about")
    rows = []
    for row in range(6):
        picture(base / TEST / f"{row:05d}.ppm", 100 + row)
        rows.append(f"{row:05d}.ppm;40;40;5;5;35;35;{2 - row % 3}\n")
    (base / TRUTH).write_text(HEADER + "".join(rows))
    return tmp_path


def ready(root: Path, **keys: Any) -> GTSRB:
    data = GTSRB(0, root=str(root), batch_size=4, **{"verify": False, "val_fraction": 0.0, **keys})
    data.setup()
    return data


def test_images_and_labels_are_those_of_torchvision(root: Path) -> None:
    data = ready(root)
    size = v2.Compose([v2.Resize(32, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(32)])
    ours = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    for split, (images, labels) in ours.items():
        theirs = datasets.GTSRB(str(root), split=split)
        assert labels.tolist() == [label for _, label in theirs] and images.shape == (len(theirs), 3, 32, 32)
        for image, (expected, _) in zip(images, theirs, strict=True):
            wanted = torch.from_numpy(np.array(size(expected))).permute(2, 0, 1)
            # Resized and cropped in one step here, in two there, which rounds twice.
            assert (image.int() - wanted.int()).abs().max() <= 3
    assert data.classes == ("00000", "00001", "00002")
    assert ready(root, image_size=48).train_images.shape[2:] == (48, 48)


def test_counts_are_checked(root: Path) -> None:
    expected = "holds 3 classes, 12 training and 6 test images, expected 43 classes, 26640 training and 12630 test"
    with pytest.raises(ValueError, match=f"{expected}.*set data.verify=false"):
        ready(root, verify=True)


def test_missing_parts_are_named(root: Path, tmp_path: Path) -> None:
    (root / "gtsrb" / TRUTH).unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: GT-final_test.csv\).*unpack GTSRB-Training_fixed.zip, "):
        ready(root)
    with pytest.raises(FileNotFoundError, match=r"missing: GTSRB/Training/, GTSRB/Final_Test/Images/, GT-final_test"):
        ready(tmp_path / "nowhere")


@pytest.mark.fault
def test_archives_brought_by_hand(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, place = root / "gtsrb", tmp_path / "place" / "gtsrb"
    place.mkdir(parents=True)
    known = {}
    for name, (part, _) in ARCHIVES.items():
        with zipfile.ZipFile(place / name, "w") as archive:
            for path in sorted((base / part).rglob("*")) if part != TRUTH else [base / TRUTH]:
                if path.is_file():
                    archive.write(path, str(path.relative_to(base)))
        known[name] = (part, file_sha256(place / name))
    with pytest.raises(FileNotFoundError, match=r"fixed.zip is not the expected file \(its sha256 is not df414494"):
        ready(tmp_path / "place", download=True)
    monkeypatch.setattr(gtsrb, "ARCHIVES", known)
    assert ready(tmp_path / "place", download=True).manifest == ready(root).manifest
    left = {path.name for path in place.iterdir()}
    assert left == {"GTSRB", TRUTH, *ARCHIVES}, "nothing else is left behind"


def test_published_archives() -> None:
    assert all(len(digest) == 64 for _, digest in ARCHIVES.values()) and gtsrb.BASE.startswith("https://sid.erda.dk/")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "GT-final_test.csv has no rows"),
        ("00000.ppm;40;40;5;5;35;35;3\n", "GT-final_test.csv, line 2: class 3 is outside 0..2"),
        ("00000.ppm;40;40;5;5;35;35;-1\n", "line 2: ClassId is '-1', expected a number"),
        ("00000.ppm;40;40;5;5;35\n", "line 2: 6 cells, expected 8"),
        ("../x.ppm;40;40;5;5;35;35;0\n", "GT-final_test.csv, line 2: "),
        ("00009.ppm;40;40;5;5;35;35;0\n", "line 2: there is no file .*00009.ppm"),
        ("00000.ppm;4;4;5;5;35;35;0\n00000.ppm;4;4;5;5;35;35;1\n", "line 3: '00000.ppm' stands already on line 2"),
    ],
)
def test_wrong_lists(root: Path, rows: str, message: str) -> None:
    (root / "gtsrb" / TRUTH).write_text(HEADER + rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ready(root)


def test_wrong_header(root: Path) -> None:
    (root / "gtsrb" / TRUTH).write_text("Filename;ClassId\n00000.ppm;0\n")
    with pytest.raises(ValueError, match="the header is 'Filename ClassId', expected 'Filename Width Height"):
        ready(root)


def test_wrong_folders(root: Path) -> None:
    train = root / "gtsrb" / TRAIN
    (train / "00001").rename(train / "stop")
    with pytest.raises(ValueError, match="must hold the class folders 00000, 00001, ...; found '00002'"):
        ready(root)
    (train / "stop").rename(train / "00001")
    for path in (train / "00001").glob("*.ppm"):
        path.unlink()
    with pytest.raises(ValueError, match="class folder .*00001 holds no .ppm image"):
        ready(root)


def test_a_damaged_image_is_named(root: Path) -> None:
    path = root / "gtsrb" / TRAIN / "00001" / "00000_00002.ppm"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="00000_00002.ppm has .* bytes, and .* pixels are .*; bring another copy"):
        ready(root)


@pytest.mark.skipif(
    not REAL or not (Path(REAL) / "gtsrb").is_dir(), reason="set DATA_ROOT to a folder that holds gtsrb"
)
def test_real_gtsrb() -> None:
    data = ready(Path(REAL), verify=True)
    assert (data.num_classes, data.num_train, len(data.test_labels)) == (43, 26_640, 12_630)
    assert int(torch.bincount(data.train_labels).min()) == 150
