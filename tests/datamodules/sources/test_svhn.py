"""SVHN: torchvision's arrays, and files that are damaged or others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from datamodules.reading.download import file_sha256
from datamodules.sources import svhn
from datamodules.sources.svhn import SVHN, read_digits

REAL = os.environ.get("DATA_ROOT", "")


def content(count: int, seed: int = 0) -> dict[str, Any]:
    images = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
    return {"X": images, "y": np.array([[number % 10 + 1] for number in range(count)], np.uint8)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """40 training and 20 test images; training is compressed, as the published files are."""
    savemat(tmp_path / "train_32x32.mat", content(40), do_compression=True)
    savemat(tmp_path / "test_32x32.mat", content(20, 1))
    return tmp_path


def ready(root: Path, **keys: Any) -> SVHN:
    data = SVHN(0, root=str(root), batch_size=10, **{"verify": False, **keys})
    data.setup()
    return data


def test_equal_to_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    data = ready(root)
    ours = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    for split, (images, labels) in ours.items():
        theirs = datasets.SVHN(str(root), split=split)
        assert torch.equal(images, torch.from_numpy(np.ascontiguousarray(theirs.data)))
        assert labels.tolist() == theirs.labels.tolist()
    assert data.classes == tuple("0123456789") and data.train_labels.tolist()[8:11] == [9, 0, 1], "10 is the digit 0"


def test_missing_and_rebuilt_files(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_32x32.mat, test_32x32.mat differ from the published .*verify=false"):
        ready(root, verify=True)
    (root / "test_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"SVHN is not in .*missing: test_32x32.mat\). Set data.download=true"):
        ready(root)


def test_download_is_by_https_and_checked(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def bring(url: str, target: Path, sha256: str, max_bytes: int) -> None:
        asked.append((url, sha256, max_bytes >= 182_040_794))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((root / target.name).read_bytes())

    monkeypatch.setattr(svhn, "download", bring)
    assert ready(tmp_path / "new", download=True).manifest == ready(root).manifest
    base = "https://ufldl.stanford.edu/housenumbers/"
    assert asked == [(f"{base}{part}_32x32.mat", svhn.SHA256[part], True) for part in ("train", "test")]
    assert all(len(digest) == 64 for digest in svhn.SHA256.values())


@pytest.mark.fault
def test_a_file_brought_by_hand_is_checked(root: Path) -> None:
    (root / "test_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat is not the expected file \(its sha256 is not 435e94"):
        ready(root, download=True)
    assert file_sha256(root / "train_32x32.mat") != svhn.SHA256["train"]


@pytest.mark.parametrize("cut", [0, 100, 200, 3000, -1, -30])
def test_damaged_file(root: Path, cut: int) -> None:
    path = root / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="train_32x32.mat (cannot be read as a MATLAB file|has no '[Xy]').*bring"):
        read_digits(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": None}, "has no 'X', only y; bring another copy"),
        ({"X": np.zeros((32, 32, 1, 40), np.uint8)}, r"have shape \[32, 32, 1, 40\]; SVHN holds \[32, 32, 3, N\]"),
        ({"X": np.zeros((32, 32, 3, 40), np.float32)}, "are float32; SVHN holds uint8"),
        ({"y": np.ones((39, 1), np.uint8)}, r"holds 40 images but labels of shape \[39, 1\]; bring another copy"),
        ({"y": np.zeros((40, 1), np.uint8)}, "are not all whole numbers in 1..10"),
        ({"y": np.full((40, 1), 1.5)}, "are not all whole numbers in 1..10"),
        ({"y": np.full((40, 1), 11)}, "are not all whole numbers in 1..10"),
    ],
)
def test_wrong_content(root: Path, change: dict[str, Any], message: str) -> None:
    entries = {name: array for name, array in (content(40) | change).items() if array is not None}
    savemat(root / "train_32x32.mat", entries)
    with pytest.raises(ValueError, match=message):
        ready(root)


def test_a_file_is_refused_before_it_is_unpacked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "MAX_IMAGES", 39)
    monkeypatch.setattr("scipy.io.loadmat", lambda *args, **keys: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"have shape \[32, 32, 3, 40\]; SVHN holds \[32, 32, 3, N\], N up to 39"):
        ready(root)


@pytest.mark.skipif(
    not REAL or not (Path(REAL) / "train_32x32.mat").is_file(),
    reason="set DATA_ROOT to a folder that holds train_32x32.mat",
)
def test_real_svhn() -> None:
    data = ready(Path(REAL), verify=True)
    assert (data.num_train, len(data.test_labels)) == (73_257, 26_032)
    assert torch.bincount(data.train_labels)[[0, 1, 9]].tolist() == [4948, 13_861, 4659]
