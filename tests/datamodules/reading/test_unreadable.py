"""Files that cannot be read while training: named, or replaced by a sample that is chosen, reported and counted."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.augmentation.albumentations_transforms import FileAugment
from datamodules.reading.unreadable import Tally, UnreadableImage, substitute
from datamodules.sources.folder import Folder
from kernels.batch import Batch

pytestmark = pytest.mark.fault
BROKEN = {"a/3.png": b"", "b/5.png": b"<html>", "b/6.png": b"\x89PNG\r\n\x1a\n"}  # index 3, 15, 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, 10 training images each, three of which are broken; 4 test images, one broken."""
    for part, count in (("train", 10), ("test", 2)):
        for number, name in enumerate("ab"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                values = np.full((12, 12, 3), 100 * number + 5 * i, dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / part / name / f"{i}.png")
    for name, content in BROKEN.items():
        (tmp_path / "train" / name).write_bytes(content)
    (tmp_path / "test" / "b" / "0.png").write_bytes(b"x")
    return tmp_path


def ready(root: Path, **keys: Any) -> Folder:
    settings = {"image_size": 8, "batch_size": 5, "eval_batch_size": 4, "val_fraction": 0.0}
    settings |= {"on_unreadable": "substitute", "max_substituted": 0.3}
    data = Folder(0, root=str(root), **{**settings, **keys})
    data.setup()
    return data


def epochs(data: Folder, count: int = 2) -> list[Batch]:
    loader = data.train_dataloader()
    return [batch for _ in range(count) for batch in loader]


@pytest.mark.parametrize("augment", [None, FileAugment(min_scale=0.5, brightness=0.3)])
def test_index_label_and_view_are_those_of_the_sample_used(root: Path, augment: FileAugment | None) -> None:
    data = ready(root, augment=augment)
    source = data.source("train")
    with pytest.warns(UserWarning, match=r"cannot read image .*passed over.*up to 6 of the 20 files of train"):
        batches = epochs(data)
    assert len(batches) == 8
    for number, batch in enumerate(batches):
        assert not {3, 15, 16} & set(batch.index.tolist()) and len(batch) == 5 and batch.view is not None
        assert torch.equal(batch.label, data.train_labels[batch.index])
        replayed = torch.stack([
            torch.from_numpy(source._pictures(index[None], view[None], number // 4)[0]).permute(2, 0, 1) / 255
            for index, view in zip(batch.index, batch.view, strict=True)
        ])  # fmt: skip
        assert torch.allclose(batch.image, replayed, atol=1e-6)
    assert data.unreadable() == {"train": {"files": 3, "of": 20, "first": ["a/3.png", "b/5.png", "b/6.png"]}}


@pytest.mark.filterwarnings("ignore:cannot read image")
def test_the_same_with_workers_and_after_a_restart(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = ready(root), ready(root, num_workers=2)
    expected, found = epochs(one), epochs(two)
    assert [b.index.tolist() for b in expected] == [b.index.tolist() for b in found]
    assert all(torch.equal(a.image, b.image) for a, b in zip(expected, found, strict=True))
    assert two.unreadable() == one.unreadable()  # counted in the workers, read here
    assert len(re.findall("passed over", capfd.readouterr().err)) <= 2
    again = ready(root)
    again.set_position(1, 2)
    rest = list(again.train_dataloader())
    assert [b.index.tolist() for b in rest] == [b.index.tolist() for b in expected[6:]]


@pytest.mark.filterwarnings("ignore:cannot read image")
def test_never_a_sample_that_is_held_out_or_left_out(root: Path) -> None:
    data = ready(root, val_fraction=0.5, limit_train=8, max_substituted=1.0, batch_size=8)
    allowed = set(data.train_index.tolist())
    assert len(allowed) == 8 and {3, 15, 16} & allowed
    assert all(set(batch.index.tolist()) <= allowed for batch in epochs(data, 8))


@pytest.mark.filterwarnings("ignore:cannot read image")
def test_evaluation_leaves_them_out(root: Path) -> None:
    data = ready(root, max_substituted=0.2)
    (batch,) = data.test_dataloader()
    assert batch.index.tolist() == [0, 1, 3] and batch.label.tolist() == [0, 0, 1] and len(batch.image) == 3
    data = ready(root, max_substituted=0.2, eval_batch_size=1)
    with pytest.raises(ValueError, match=r"none of the 1 images of an evaluation batch can be read.*b/0.png"):
        list(data.test_dataloader())
    assert data.unreadable()["test"]["files"] == 1


@pytest.mark.filterwarnings("ignore:cannot read image")
@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_allowed_stops_and_names_files(root: Path, workers: int) -> None:
    data = ready(root, max_substituted=0.1, num_workers=workers)
    with pytest.raises(ValueError, match=r"3 files of train cannot be read, .*max_substituted=0.1 allows 2 of 20"):
        epochs(data)
    assert data.unreadable()["train"]["files"] == 3


def test_the_default_raises_with_path_and_index(root: Path) -> None:
    data = ready(root, on_unreadable="raise")
    with pytest.raises(UnreadableImage, match=r"cannot read image .*/[ab]/[356].png \(index (3|15|16)\)"):
        epochs(data)
    assert data.unreadable() == {}


@pytest.mark.parametrize("what", ["fifo", "socket", "dangling", "device"])
def test_only_regular_files_are_read(root: Path, what: str) -> None:
    """A FIFO would wait for a writer for ever. What a file became after it was listed counts as unreadable."""
    strict, lenient = ready(root, on_unreadable="raise"), ready(root)
    path = root / "train" / "a" / "3.png"
    path.unlink()
    match what:
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as own:
                own.bind(str(path))
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
    reason = "No such file" if what == "dangling" else "it is no regular file but a folder, FIFO, socket or device"
    with pytest.raises(
        UnreadableImage, match=rf"cannot read image .*a/3.png \(index 3\): .*{reason}.*; replace the file"
    ):
        strict.source("train").picture(3)
    assert len(list(lenient.train_dataloader())) == 4 and lenient.unreadable()["train"]["files"] == 3
    assert lenient.manifest_parts()["train"]["count"] == 20


def test_memory_is_no_fault_of_the_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("datamodules.reading.files.read_rgb", read)
    data = ready(root)
    with pytest.raises(MemoryError):
        epochs(data)
    assert data.unreadable() == {}


def test_substitute_is_a_function_of_seed_epoch_and_position() -> None:
    choices = torch.arange(100, 1100)

    def draw(seed: int, epoch: int, position: int, broken: set[int]) -> int:
        return substitute(lambda other: None if other in broken else other, position, choices, seed, epoch)[0]

    first = draw(0, 0, 5, set())
    assert draw(0, 0, 5, set()) == first and draw(0, 0, 5, {first}) != first
    assert len({draw(s, e, p, set()) for s in range(3) for e in range(3) for p in range(3)}) > 20
    with pytest.raises(UnreadableImage, match="no substitute for index 5: 16 draws from 1000 are unreadable"):
        draw(0, 0, 5, set(range(2000)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"on_unreadable": "skip"}, "data.on_unreadable is 'skip'; choose raise or substitute"),
        ({"max_substituted": 0.0}, "max_substituted=0.0 is out of range; allowed: 0 < max_substituted <= 1"),
        ({"max_substituted": 3}, "max_substituted=3 is out of range; allowed: 0 < max_substituted <= 1"),
    ],
)
def test_bad_settings(root: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(root, **keys)


def test_the_allowed_number_is_rounded_up(root: Path) -> None:
    assert Tally(ready(root).files["train"], "train", 0.01).allowed == 1
