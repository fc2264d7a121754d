"""Class folders on disk: order, classes by name, damaged files, prediction without labels."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.augmentation.albumentations_transforms import FileAugment
from datamodules.sources.folder import Folder
from datamodules.sources.unlabelled import Unlabelled
from kernels.counter_rng import bits

COUNTS = {"train": 8, "test": 3}


def save(path: Path, number: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, 8 training and 3 test images each."""
    number = 0
    for part, count in COUNTS.items():
        for name in ("pear", "Apple", "fig tree"):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.{'png' if i % 2 else 'BMP'}", number)
                number += 1
    return tmp_path


def ready(root: Path, **keys: Any) -> Folder:
    settings = {"image_size": 16, "batch_size": 5, "eval_batch_size": 4, "val_fraction": 0.25, "drop_last": False}
    data = Folder(0, root=str(root), **{**settings, **keys})
    data.setup()
    return data


def test_classes_labels_and_order(root: Path) -> None:
    data = ready(root)
    assert data.classes == ("Apple", "fig tree", "pear")
    assert data.split_record()["counts"] == {"train": 18, "val": 6, "test": 9}
    assert data.num_train == 24 and torch.bincount(data.train_labels[data.val_index]).tolist() == [2, 2, 2]
    batches = list(data.test_dataloader())
    assert torch.cat([b.label for b in batches]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(9))
    images = torch.cat([b.image for b in batches])
    assert images.shape == (9, 3, 16, 16)
    for i in range(9):
        expected = torch.from_numpy(data.test_picture(i)).permute(2, 0, 1) / 255
        assert torch.allclose(images[i], expected, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_index_names_the_file(root: Path, workers: int) -> None:
    data = ready(root, num_workers=workers)
    seen = []
    for batch in data.train_dataloader():
        for image, index in zip(batch.image, batch.index.tolist(), strict=True):
            assert torch.allclose(image, torch.from_numpy(data.source("train").picture(index)).permute(2, 0, 1) / 255)
            seen.append(index)
    assert sorted(seen) == data.train_index.tolist()


def test_augmentation_is_a_function_of_the_key(root: Path) -> None:
    def epochs(workers: int, batch_size: int) -> dict[tuple[int, int], torch.Tensor]:
        augment = FileAugment(min_scale=0.3, brightness=0.4, hue=0.1)
        data = ready(root, augment=augment, num_workers=workers, batch_size=batch_size)
        loader = data.train_dataloader()
        found = {}
        for epoch in range(2):
            for batch in loader:
                for image, index in zip(batch.image, batch.index.tolist(), strict=True):
                    found[epoch, index] = image
        return found

    one, other = epochs(0, 5), epochs(2, 18)
    assert one.keys() == other.keys() and len(one) == 36
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not any(torch.equal(one[0, i], one[1, i]) for i in {index for _, index in one})


def test_training_samples_without_augmentation(root: Path) -> None:
    for name in ("pear", "Apple", "fig tree"):
        save(root / "val" / name / "x.png", 99)
    data = ready(root, augment=FileAugment(min_scale=0.3), limit_train=9)
    plain = data.source("test")
    plain.files = data.files["train"]
    batches = list(data.train_eval_dataloader())
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(index, data.train_index) and len(index) == 9
    assert torch.equal(torch.cat([batch.label for batch in batches]), data.train_labels[index])
    for image, position in zip(torch.cat([batch.image for batch in batches]), index.tolist(), strict=True):
        assert torch.allclose(image, torch.from_numpy(plain.picture(position)).permute(2, 0, 1) / 255)
    assert all(batch.view is not None and len(batch.view) == len(batch) for batch in data.train_dataloader())


def test_transforms_of_one_image_are_drawn_apart() -> None:
    """Brightness must not follow the size of the crop, as it does where all transforms share one seed."""
    augment = FileAugment(min_scale=0.1, flip_prob=0.0, brightness=0.9)
    ramp = np.tile(np.linspace(60, 120, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    spread, level = [], []
    for seeds in bits(0, 0, torch.arange(300), 0, FileAugment.streams).T.abs().tolist():
        result = augment(ramp, tuple(seeds), 16).astype(float)
        level.append(result.mean())
        spread.append((result[..., -1, :].mean() - result[..., 0, :].mean()) / result.mean())
    assert abs(np.corrcoef(level, spread)[0, 1]) < 0.25


def test_own_validation_part(root: Path) -> None:
    for name in ("pear", "Apple", "fig tree"):
        save(root / "val" / name / "x.png", 99)
    data = ready(root)
    assert data.split_record()["counts"] == {"train": 24, "val": 3, "test": 9}
    assert data.split_record()["val_fraction"] is None
    (batch,) = data.val_dataloader()
    assert batch.label.tolist() == [0, 1, 2] and batch.index.tolist() == [0, 1, 2]


def test_layout_of_imagenet(root: Path) -> None:
    (root / "test").rename(root / "val")
    data = ready(root, val_folder=None, test_folder="val")
    assert data.split_record()["counts"] == {"train": 18, "val": 6, "test": 9}
    with pytest.raises(ValueError, match="data.val_folder and data.test_folder are both 'val'"):
        ready(root, test_folder="val")


def test_manifest_and_preprocessing(root: Path) -> None:
    before = ready(root)
    assert before.preprocessing() == {
        "image_size": 16,
        "resize_size": 18,
        "interpolation": "bicubic",
        "channels": "RGB",
        "range": [0.0, 1.0],
    }
    assert ready(root).manifest == before.manifest
    with (root / "test" / "pear" / "0.BMP").open("ab") as file:
        file.write(b"x")
    assert ready(root).manifest != before.manifest


@pytest.mark.fault
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: (r / "test" / "kiwi").mkdir(), "class folders that the training part has not: 'kiwi'"),
        (lambda r: (r / "test" / "pear").rename(r / "gone"), "no folder for these classes of .*: 'pear'"),
        (lambda r: (r / "train" / "kiwi").mkdir(), "class folder .*kiwi holds no image"),
        (lambda r: (r / "train" / "pear" / "more").mkdir(), "holds the folder 'more'; images must lie directly"),
        (lambda r: (r / "test").rename(r / "tset"), "no folder .*test; expected test/CLASS/IMAGE"),
    ],
)
def test_faulty_trees(root: Path, change: Any, message: str) -> None:
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ready(root)


def test_missing_root_and_empty_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*train; expected train/CLASS/IMAGE below data.root"):
        ready(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="train holds no class folders"):
        ready(tmp_path)


@pytest.mark.fault
def test_missing_classes_can_be_allowed_and_are_mapped_by_name(root: Path) -> None:
    (root / "test" / "Apple").rename(root / "gone")
    data = ready(root, allow_missing_classes=True)
    assert torch.cat([b.label for b in data.test_dataloader()]).tolist() == [1, 1, 1, 2, 2, 2]


def test_other_files_are_named_in_a_warning(root: Path) -> None:
    (root / "train" / "pear" / "notes.txt").write_text("x")
    (root / "train" / "pear" / ".hidden").write_text("x")
    (root / "train" / "fig tree" / "Thumbs.db").write_text("x")
    save(root / "train" / "stray.png", 1)
    with pytest.warns(UserWarning) as caught:
        assert ready(root).num_train == 24
    (said,) = (str(warning.message) for warning in caught)
    assert said.startswith(f"{root / 'train'}: left out: images beside the class folders: 1, the first 'stray.png'; ")
    assert "; names without .jpg .jpeg " in said and " .tiff: 2, the first 'fig tree/Thumbs.db'; " in said
    assert said.endswith("; hidden names: 1, the first 'pear/.hidden'")


def test_linked_class_folders_and_images_are_read_and_special_files_never(root: Path) -> None:
    """A pipe named as an image would hang the run that opens it."""
    os.mkfifo(root / "train" / "pear" / "pipe.png")
    (root / "train" / "pear" / "gone.png").symlink_to(root / "nothing.png")
    (root / "train" / "pear" / "itself.png").symlink_to(root / "train" / "pear" / "itself.png")
    (root / "train" / "pear" / "same.png").symlink_to(root / "train" / "Apple" / "1.png")
    save(root / "train" / "pear" / ".ipynb_checkpoints" / "0-checkpoint.png", 1)
    (root / "test" / "pear").rename(root / "elsewhere")
    (root / "test" / "pear").symlink_to(root / "elsewhere")
    special = "special files and links to nothing: 3, the first 'pear/gone.png'"
    with pytest.warns(UserWarning, match=f"left out: hidden names: 1, the first 'pear/.ipynb_checkpoints'; {special}$"):
        data = ready(root, val_fraction=0.0)
    assert data.num_train == 25 and len(data.test_labels) == 9
    assert sum(len(batch) for batch in data.train_eval_dataloader()) == 25


COMPOSED, DECOMPOSED = "cr\u00e8me", "cre\u0300me"


def test_names_of_another_unicode_form_are_one_class(root: Path) -> None:
    for part, name in (("train", COMPOSED), ("test", DECOMPOSED)):
        (root / part / "pear").rename(root / part / name)
    data = ready(root)
    assert data.classes == ("Apple", COMPOSED, "fig tree") and data.test_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    save(root / "test" / COMPOSED / "x.png", 1)
    with pytest.raises(ValueError, match=r"test has two folders for one class: 'cre\\u0300me' and 'cr\\xe8me' differ"):
        ready(root)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_part(root: Path, name: str) -> None:
    for kind in ("pear", "Apple", "fig tree"):
        save(root / name / kind / "x.png", 99)
    assert ready(root).split_record()["counts"] == {"train": 24, "val": 3, "test": 9}
    assert ready(root, val_folder=None).split_record()["counts"] == {"train": 18, "val": 6, "test": 9}
    as_test = ready(root, test_folder=name)
    assert as_test.split_record()["counts"] == {"train": 18, "val": 6, "test": 3}, "no part is two"
    shutil.copytree(root / name, root / "val")
    with pytest.raises(ValueError, match=f"holds val/ and {name}/, and one of them .* or set data.val_folder={name}"):
        ready(root)
    assert ready(root, val_folder=name).split_record()["counts"]["val"] == 3
    with pytest.raises(FileNotFoundError, match=r"no folder .*/vall; correct data.val_folder=vall, or set .*=null"):
        ready(root, val_folder="vall")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_with_its_index(root: Path, workers: int) -> None:
    (root / "test" / "fig tree" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read image .*fig tree/1.png \(index 4\).*replace the file"):
        list(ready(root, num_workers=workers).test_dataloader())


def test_too_large_image_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read image .*\(index 0\): 24x20 are more than data.max_pixels=100"):
        next(iter(ready(root, max_pixels=100).test_dataloader()))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"interpolation": "nearest"}, "data.interpolation is 'nearest'; choose bilinear or bicubic"),
        ({"resize_size": 8}, "data.image_size=16 must be at least 1 and at most data.resize_size=8"),
        ({"image_size": 0}, r"image_size=0 is out of range; allowed: 1 <= image_size <= 16384 \(int\)"),
    ],
)
def test_bad_settings(root: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(root, **keys)


def test_bad_augment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="must be a datamodules.*albumentations_transforms.FileAugment, got int"):
        ready(root, augment=3)
    with pytest.raises(ValueError, match="min_scale=0.0 is out of range; allowed: 0 < min_scale <= 1"):
        FileAugment(min_scale=0.0)
    with pytest.raises(ValueError, match="hue=0.7 is out of range; allowed: 0 <= hue <= 0.5"):
        FileAugment(hue=0.7)
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match="pip install 'albumentations"):
        FileAugment()(np.zeros((4, 4, 3), np.uint8), (1, 2, 3), 4)


def test_unlabelled(root: Path, tmp_path: Path) -> None:
    data = ready(root)
    unlabelled = Unlabelled(data.preprocessing(), root=str(root / "test"), eval_batch_size=4)
    assert len(unlabelled) == 9 and unlabelled.paths[0] == "Apple/0.BMP"
    batches = list(unlabelled.dataloader())
    assert torch.cat([b.label for b in batches]).tolist() == [-1] * 9
    labelled = torch.cat([b.image for b in data.test_dataloader()])
    assert torch.equal(torch.cat([b.image for b in batches]), labelled)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; data.root must be a folder of images"):
        Unlabelled(data.preprocessing(), root=str(tmp_path / "nowhere"))
    (tmp_path / "void").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in .*void"):
        Unlabelled(data.preprocessing(), root=str(tmp_path / "void"))


def test_declared_facts(root: Path) -> None:
    """They must agree with what is read, and stand in for it where there is nothing."""
    with pytest.raises(ValueError, match="holds 24 training images in 3 classes, and data.expect says 25 in 3"):
        ready(root, expect={"classes": 3, "train": 25})
    assert ready(root, expect={"classes": 3, "train": 24}).absent is None
    with pytest.raises(ValueError, match="must be null or"):
        ready(root, expect={"classes": 3})
    data = ready(root / "elsewhere", expect={"classes": 3, "train": 24}, batch_size=4)
    assert (data.num_classes, data.num_train, data.steps_per_epoch) == (3, 24, 5)
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere/train.*data\.root=FOLDER"):
        data.train_dataloader()
