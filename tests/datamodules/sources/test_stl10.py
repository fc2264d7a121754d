"""STL-10: torchvision's arrays, and files of another size."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from datamodules.reading.download import file_sha256
from datamodules.sources import stl10
from datamodules.sources.stl10 import STL10

REAL = os.environ.get("DATA_ROOT", "")
NAMES = "airplane bird car cat deer dog horse monkey ship truck"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 training and 10 test images."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for part, count in (("train", 20), ("test", 10)):
        np.random.default_rng(count).integers(0, 256, (count, 27648), np.uint8).tofile(folder / f"{part}_X.bin")
        np.array([number % 10 + 1 for number in range(count)], np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(NAMES.split()) + "\n")
    return tmp_path


def ready(root: Path, **keys: Any) -> STL10:
    data = STL10(0, root=str(root), batch_size=10, **{"verify": False, **keys})
    data.setup()
    return data


def test_equal_to_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    data = ready(root)
    ours = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    for split, (images, labels) in ours.items():
        theirs = datasets.STL10(str(root), split=split)
        assert torch.equal(images, torch.from_numpy(np.ascontiguousarray(theirs.data)))
        assert labels.tolist() == theirs.labels.tolist()
    assert data.classes == tuple(NAMES.split()) and data.image_size == 96
    stored = np.fromfile(root / "stl10_binary" / "train_X.bin", np.uint8)
    assert data.train_images[1, 2, 3, 5] == stored[27648 + 2 * 9216 + 5 * 96 + 3], "column after column"


def test_missing_and_rebuilt_files(root: Path) -> None:
    with pytest.raises(ValueError, match="train_X.bin, train_y.bin, test_X.bin, test_y.bin differ from the published"):
        ready(root, verify=True)
    (root / "stl10_binary" / "test_y.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: test_y.bin\).*download=true.*unpack stl10_binary.tar.gz so"):
        ready(root)
    with pytest.raises(FileNotFoundError, match="missing: test_y.bin.*exists and is not complete; remove it"):
        ready(root, download=True)


@pytest.mark.fault
def test_archive_brought_by_hand(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with tarfile.open(place / "stl10_binary.tar.gz", "w:gz") as archive:
        archive.add(root / "stl10_binary", "stl10_binary")
    with pytest.raises(FileNotFoundError, match=r"is not the expected file \(its sha256 is not f31fd992"):
        ready(place, download=True)
    monkeypatch.setattr(stl10, "ARCHIVE_SHA256", file_sha256(place / "stl10_binary.tar.gz"))
    assert ready(place, download=True).manifest == ready(root).manifest


def test_published_archive() -> None:
    theirs = datasets.STL10.url.replace("http://ai.", "https://cs.")
    assert theirs == stl10.URL and stl10.MAX_BYTES > 2_640_397_119 and len(stl10.ARCHIVE_SHA256) == 64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_X.bin", b"", "train_X.bin has 0 bytes, which are not 1 to 100000 images of 27648 bytes"),
        ("train_X.bin", bytes(27648 * 20 - 1), "train_X.bin has 552959 bytes"),
        ("train_X.bin", bytes(27648 * 19), "train_X.bin holds 19 images but .*train_y.bin 20 labels; bring another"),
        ("train_y.bin", bytes([1] * 19 + [0]), "labels in .*train_y.bin are not all in 1..10"),
        ("test_y.bin", bytes([1] * 9 + [11]), "labels in .*test_y.bin are not all in 1..10"),
        ("class_names.txt", b"a b c", "class_names.txt names 3 classes, expected 10 different ones"),
        ("class_names.txt", b"a\n" * 10, "class_names.txt names 10 classes, expected 10 different ones"),
        ("class_names.txt", b"\xff", "class_names.txt, line 1: not UTF-8"),
    ],
)
def test_damaged_files(root: Path, name: str, content: bytes, message: str) -> None:
    (root / "stl10_binary" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ready(root)


def test_too_many_images_are_refused_by_the_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stl10, "MAX_IMAGES", 19)
    with pytest.raises(ValueError, match="which are not 1 to 19 images"):
        ready(root)


@pytest.mark.skipif(
    not REAL or not (Path(REAL) / "stl10_binary").is_dir(), reason="set DATA_ROOT to a folder that holds stl10_binary"
)
def test_real_stl10() -> None:
    data = ready(Path(REAL), verify=True)
    assert torch.bincount(data.train_labels).tolist() == [500] * 10 and len(data.test_labels) == 8000
