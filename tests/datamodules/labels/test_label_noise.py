"""Label noise: pure functions of position and seed, put in after the split, with the clean labels beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from datamodules.arrays import ArrayData
from datamodules.base import ImageData
from datamodules.labels.label_noise import LabelNoise
from datamodules.labels.symmetric import Symmetric
from datamodules.manifest import manifest_difference
from datamodules.sources.folder import Folder
from datamodules.sources.folder_disjoint import FolderDisjoint
from datamodules.sources.grocery import GroceryDisjoint
from recipes.building.make import make
from recipes.configuration.catalogue import CONFIGS
from recipes.configuration.signature import signature

FILES = sorted((CONFIGS / "noise").glob("*.yaml"))
NAMES = tuple("abcd")


def noisy(kind: type[ImageData], *, noise: LabelNoise | None = None, **keys: Any) -> Any:
    data = kind(0, **{"batch_size": 4, "eval_batch_size": 50, "drop_last": False, **keys})
    data.noise = noise
    data.setup()
    return data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """20 training, 10 validation and 10 test files of two classes, each of one grey value."""
    for part, count in (("train", 10), ("val", 5), ("test", 5)):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                picture = np.full((9, 9, 3), 10 * i + ord(name), np.uint8)
                Image.fromarray(picture).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_noise_is_a_function_of_the_position(path: Path) -> None:
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    noise = make(node, group="noise")
    assert isinstance(noise, LabelNoise) and type(noise).__module__ == f"datamodules.labels.{path.stem}"
    assert set(node) - {"_target_"} == set(signature(node["_target_"])), "all keys"
    labels = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(0))
    kept, state = labels.clone(), torch.get_rng_state()
    found = noise.apply(labels, NAMES, 3)
    assert torch.equal(labels, kept) and torch.equal(torch.get_rng_state(), state)
    assert found.dtype == labels.dtype and found.min() >= 0 and found.max() < 4 and not torch.equal(found, labels)
    assert torch.equal(noise.apply(labels, NAMES, 3), found) and not torch.equal(noise.apply(labels, NAMES, 4), found)
    assert torch.equal(noise.apply(labels[:100], NAMES, 3), found[:100])
    changed = labels.clone()
    changed[::2] = 0
    assert torch.equal(noise.apply(changed, NAMES, 3)[1::2], found[1::2]), "one label says nothing about another's"
    assert noise.record()["name"] == type(noise).__name__


@pytest.mark.parametrize("include_true", [False, True])
def test_symmetric_moves_labels_as_its_transition_matrix_says(include_true: bool) -> None:
    each, rate, classes = 40_000, 0.3, 4
    labels = torch.arange(classes).repeat_interleave(each)
    found = Symmetric(rate=rate, include_true=include_true).apply(labels, NAMES, 0)
    for true in range(classes):
        for given in range(classes):
            share = rate / classes if include_true else 0 if true == given else rate / (classes - 1)
            share += 1 - rate if true == given else 0
            count = int(((labels == true) & (found == given)).sum())
            assert abs(count - each * share) < 5 * (each * share * (1 - share)) ** 0.5
    assert torch.equal(Symmetric(rate=0).apply(labels, NAMES, 0), labels)
    assert bool((Symmetric(rate=1).apply(labels, NAMES, 0) != labels).all())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("files", [False, True])
def test_batches_hold_both_labels_and_split_and_order_are_as_without(
    tiny: type[ArrayData], tree: Path, workers: int, files: bool
) -> None:
    kind: Any = Folder if files else tiny
    keys = {"root": str(tree), "image_size": 8, "val_folder": None} if files else {}
    keys |= {"num_workers": workers, "limit_train": 12, "val_fraction": 0.2}
    clean, data = noisy(kind, **keys), noisy(kind, noise=Symmetric(rate=0.5), **keys)
    for name in ("train_index", "val_index", "test_index", "stored_labels", "test_labels"):
        assert torch.equal(getattr(clean, name), getattr(data, name))
    loaders = ("train_dataloader", "train_eval_dataloader", "val_dataloader", "test_dataloader")
    wrong = 0
    for name in loaders:
        for before, batch in zip(getattr(clean, name)(), getattr(data, name)(), strict=True):
            assert torch.equal(before.index, batch.index) and torch.equal(before.image, batch.image)
            assert before.clean_label is None
            if name.startswith("train"):
                assert torch.equal(batch.clean_label, before.label)
                assert torch.equal(batch.label, data.train_labels[batch.index])
                wrong += int((batch.label != before.label).sum())
            else:
                assert batch.clean_label is None and torch.equal(batch.label, before.label)
    measured = data.split_record()["noise"]["measured"]
    assert wrong > 0 and measured == {"train": wrong / 2 / 12}
    assert "noise" not in clean.split_record() and "noise" not in clean.manifest_parts()


def test_validation_is_noisy_on_request(tiny: type[ArrayData], tree: Path) -> None:
    noise = Symmetric(rate=0.5, validation="noisy")
    data = noisy(tiny, noise=noise, val_fraction=0.5)
    (batch,) = data.val_dataloader()
    assert torch.equal(batch.label, data.train_labels[batch.index])
    assert torch.equal(batch.clean_label, batch.index % 4) and not torch.equal(batch.label, batch.clean_label)
    found = data.split_record()["noise"]
    assert found["measured"]["val"] == float((batch.label != batch.clean_label).double().mean())
    assert {key: found[key] for key in ("name", "rate", "validation")} == {
        "name": "Symmetric", "rate": 0.5, "validation": "noisy"
    }  # fmt: skip
    own = noisy(Folder, noise=noise, root=str(tree), image_size=8)
    (batch,) = own.val_dataloader()
    flips = batch.label != batch.clean_label
    assert flips.any() and batch.clean_label.tolist() == [0] * 5 + [1] * 5
    assert not torch.equal(flips, (own.train_labels != own.stored_labels)[:10]), "a set of its own has draws of its own"


def test_classes_that_are_held_out_stay_out() -> None:
    clean, data = noisy(GroceryDisjoint), noisy(GroceryDisjoint, noise=Symmetric(rate=0.4))
    out = clean.train_labels < 0
    assert torch.equal(data.train_labels < 0, out) and data.classes == clean.classes
    assert torch.equal(data.labels_of("val"), clean.labels_of("val"))
    assert abs(float((data.train_labels != clean.train_labels)[~out].double().mean()) - 0.4) < 0.07
    assert data.train_labels.max() < len(data.classes)


def test_balanced_batches_go_by_what_a_learner_would_see(tiny: type[ArrayData]) -> None:
    data = noisy(tiny, noise=Symmetric(rate=0.5), samples_per_class=2, batch_size=8)
    for batch in data.train_dataloader():
        assert batch.label.bincount(minlength=4).tolist() == [2, 2, 2, 2]


def test_the_manifest_names_the_noise(tiny: type[ArrayData]) -> None:
    clean, one = noisy(tiny), noisy(tiny, noise=Symmetric(rate=0.5))
    count = int((one.train_labels != one.stored_labels).sum())
    assert one.manifest_parts() == {**clean.manifest_parts(), "noise": one.manifest_parts()["noise"]}
    assert noisy(tiny, noise=Symmetric(rate=0.5), val_fraction=0.3, limit_train=9).manifest == one.manifest
    assert manifest_difference(clean.manifest_parts(), one.manifest_parts()) == [f"noise: absent before, {count} now"]

    class Shifted(Symmetric):
        def apply(self, labels_N: Tensor, classes: tuple[str, ...], seed: int) -> Tensor:
            wrong = super().apply(labels_N, classes, seed) != labels_N
            return torch.where(wrong, (labels_N + 1) % len(classes), labels_N)

    other = noisy(tiny, noise=Shifted(rate=0.5))
    assert manifest_difference(one.manifest_parts(), other.manifest_parts()) == [
        f"noise: {count} before and now, but other wrong labels"
    ]
    seeds = [noisy(tiny, noise=Symmetric(rate=0.5, seed=seed)).manifest for seed in (0, 1)]
    assert seeds[0] == one.manifest != seeds[1]


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("tiny", {"select_on": "test_best"}, "noisy: validation is the test part .* set noise.validation=clean"),
        ("tiny", {"val_fraction": 0.0}, "noisy: nothing is held out for validation"),
        (GroceryDisjoint, {}, "noisy: validation has classes of its own here"),
        (FolderDisjoint, {"image_size": 8}, "noisy: validation has classes of its own here"),
    ],
)
def test_validation_that_cannot_be_noisy(tiny: Any, tmp_path: Path, kind: Any, keys: Any, message: str) -> None:
    if kind is FolderDisjoint:
        for part, name in (("train", "a"), ("train", "b"), ("val", "c"), ("val", "d"), ("test", "e")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / part / name / "0.png")
        keys = {**keys, "root": str(tmp_path)}
    with pytest.raises(ValueError, match=message):
        noisy(tiny if kind == "tiny" else kind, noise=Symmetric(validation="noisy"), **keys)


def test_errors() -> None:
    with pytest.raises(ValueError, match="rate=1.5 is out of range; allowed: 0 <= rate <= 1"):
        Symmetric(rate=1.5)
    with pytest.raises(ValueError, match="noise.validation is 'both'; choose clean or noisy"):
        Symmetric(validation="both")
    with pytest.raises(ValueError, match="noise=Symmetric needs a second class to mistake the one of this data for"):
        Symmetric().noisy(torch.zeros(3, dtype=torch.int64), ("only",))
    with pytest.raises(NotImplementedError, match=r"LabelNoise must define apply\(labels_N, classes, seed\)"):
        LabelNoise().apply(torch.zeros(1), NAMES, 0)
