"""CIFAR files: read without trusting them, refused with a reason."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from datamodules.reading.download import file_sha256
from datamodules.sources.cifar import CIFAR10, CIFAR100, read_pickle

REAL = os.environ.get("DATA_ROOT", "")


def write(path: Path, entry: Any, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(entry, protocol))


def batch(count: int, classes: int, start: int = 0, kinds: tuple[str, ...] = ("labels",)) -> dict[str, Any]:
    data = np.random.default_rng(start).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, **{kind: [(start + i) % classes for i in range(count)] for kind in kinds}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both sets with 20 images a batch."""
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        write(folder / f"data_batch_{number}", batch(20, 10, 20 * number), protocol=1 + number % 4)
    write(folder / "test_batch", batch(20, 10))
    write(folder / "batches.meta", {"label_names": list("abcdefghij")})
    folder = tmp_path / "cifar-100-python"
    kinds = ("fine_labels", "coarse_labels")
    write(folder / "train", batch(200, 20, kinds=kinds))
    write(folder / "test", batch(40, 20, kinds=kinds))
    names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    write(folder / "meta", names)
    return tmp_path


def cifar10(root: Path, **keys: Any) -> CIFAR10:
    data = CIFAR10(0, root=str(root), batch_size=10, **{"verify": False, **keys})
    data.setup()
    return data


def test_equal_to_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    data = cifar10(root)
    ours = {True: (data.train_images, data.train_labels), False: (data.test_images, data.test_labels)}
    for train, (images, labels) in ours.items():
        theirs = datasets.CIFAR10(str(root), train=train)
        assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert labels.tolist() == theirs.targets
    assert data.classes == tuple("abcdefghij") and data.num_train == 100


def test_fine_and_coarse_labels(root: Path) -> None:
    keys: dict[str, Any] = {"root": str(root), "verify": False, "batch_size": 10}
    fine, coarse = CIFAR100(0, **keys), CIFAR100(0, labels="coarse", **keys)
    fine.setup()
    coarse.setup()
    assert fine.num_classes == 100 and coarse.num_classes == 20 and coarse.classes[3] == "c3"
    with pytest.raises(ValueError, match="data.labels is 'medium'; choose fine or coarse"):
        CIFAR100(0, labels="medium")  # type: ignore[arg-type]


def test_missing_data_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        cifar10(tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "cifar-10-batches-py"), "data.download=true", "data.root", "cifar-10-python.tar.gz"):
        assert part in message


def test_failed_download_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **keys: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("datamodules.sources.cifar.download", offline)
    with pytest.raises(FileNotFoundError, match=r"(?s)missing: data_batch_1.*Network is unreachable.*data.root"):
        cifar10(tmp_path, download=True)


@pytest.mark.fault
def test_archive_brought_by_hand(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive in ``root`` is checked and unpacked without a network; a wrong one is refused."""
    place = tmp_path / "place"
    place.mkdir()
    with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(
        FileNotFoundError, match=r"is not the expected file \(its sha256 is not 6d958be0.*remove or repl"
    ):
        cifar10(place, download=True)
    monkeypatch.setattr(CIFAR10, "archive_sha256", file_sha256(place / "cifar-10-python.tar.gz"))
    assert cifar10(place, download=True).manifest == cifar10(root).manifest
    assert sorted(path.name for path in place.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    (place / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="missing: test_batch.*exists and is not complete; remove it"):
        cifar10(place, download=True)


def test_published_archives() -> None:
    """The names, addresses and hashes belong together: those of the archives' publisher."""
    for kind, name in ((CIFAR10, "cifar-10"), (CIFAR100, "cifar-100")):
        facts = getattr(datasets, kind.torchvision_name)
        assert facts.url == f"https://www.cs.toronto.edu/~kriz/{name}-python.tar.gz" and len(kind.archive_sha256) == 64


def test_one_missing_file_is_named(root: Path) -> None:
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: data_batch_3\)"):
        cifar10(root)


def test_rebuilt_files_need_verify_false(root: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)data_batch_1, .* differ from the published files .*data.verify=false"):
        cifar10(root, verify=True)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_file_is_refused_and_not_run(root: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    write(root / "cifar-10-batches-py" / "data_batch_2", {"data": Hostile(marker)})
    with pytest.raises(ValueError, match=r"data_batch_2: posix.mkdir is not allowed"):
        cifar10(root)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", pickle.dumps({"data": np.zeros(9)})[:-20]])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read .*data_batch_1.*bring another copy"):
        read_pickle(tmp_path / "data_batch_1")


@pytest.mark.parametrize(
    "entry, message",
    [
        ([1, 2], "holds a list, not a dict"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "has no entry 'labels'"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 0]}, r"a CIFAR batch holds uint8 \[N, 3072\]"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [0, 0]}, "images in .* are .*float32"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 0, 0]}, "holds 2 images but 3 labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "train label 10 at index 1 is outside 0..9"),
    ],
)
def test_wrong_content(root: Path, entry: Any, message: str) -> None:
    write(root / "cifar-10-batches-py" / "data_batch_1", entry)
    with pytest.raises(ValueError, match=message):
        cifar10(root)


def test_meta_without_names(root: Path) -> None:
    write(root / "cifar-10-batches-py" / "batches.meta", {"label_names": [b"a"]})
    with pytest.raises(ValueError, match="has no list 'label_names'"):
        cifar10(root)


@pytest.mark.skipif(
    not (Path(REAL) / "cifar-10-batches-py").is_dir() or not REAL,
    reason="set DATA_ROOT to a folder that holds cifar-10-batches-py",
)
def test_real_cifar10() -> None:
    data = cifar10(Path(REAL))
    assert (data.num_train, len(data.test_labels)) == (50_000, 10_000)
    assert torch.bincount(data.train_labels).tolist() == [5000] * 10 and data.classes[0] == "airplane"
    mean = data.train_images.double().mean((0, 2, 3)) / 255
    assert (mean - torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64)).abs().max() < 2e-3
