"""Batch: moved, split and joined with all its fields; what is one tensor stays one."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from kernels.batch import Batch


def full(count: int = 5) -> Batch:
    """Every field set, all of them different tensors."""
    image, index = torch.rand(count, 3, 2, 2), torch.arange(count)
    names = {f.name for f in fields(Batch)} - {"image", "label", "index", "position", "extra"}
    named = {name: torch.rand(count) for name in names}
    return Batch(image, index % 2, index, **named, position=(3, 1), extra={"pair": index + 7})


def test_what_is_one_tensor_stays_one() -> None:
    batch = full().replace(second_image=torch.rand(5, 3, 2, 2))
    batch = batch.replace(clean_image=batch.image, extra={"mixed": batch.image, "note": "text"})
    calls = []
    mapped = batch.map(lambda tensor: calls.append(tensor) or tensor + 1)
    assert mapped.clean_image is mapped.image is mapped.extra["mixed"] and mapped.extra["note"] == "text"
    assert len(calls) == len({id(tensor) for tensor in calls}), "a shared tensor is sent once"
    assert mapped.second_image is not mapped.image and torch.equal(mapped.image, batch.image + 1)
    for micro in batch.split(2):
        assert micro.clean_image is micro.image is micro.extra["mixed"]
    moved = batch.to("meta")
    assert moved.clean_image is moved.image and moved.image.device.type == "meta"


def test_equal_tensors_that_are_two_stay_two() -> None:
    batch = full()
    batch = batch.replace(clean_image=batch.image.clone())
    mapped = batch.map(lambda tensor: tensor)
    assert mapped.clean_image is batch.clean_image and mapped.image is batch.image


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_split_and_join_keep_every_field(parts: int) -> None:
    batch = full()
    again = Batch.join(batch.split(parts))
    for field in fields(Batch):
        if field.name not in ("position", "extra"):
            assert torch.equal(getattr(again, field.name), getattr(batch, field.name)), field.name
    assert torch.equal(again.extra["pair"], batch.extra["pair"])
    assert again.position == batch.position == batch.to("meta").position == (3, 1)


class Elsewhere:
    """Stands for a tensor on a device that this machine need not have."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.mark.parametrize(
    "here, there, stays",
    [
        ("cuda:0", "cuda", True),
        ("cuda:1", "cuda", True),
        ("cuda:0", "cuda:0", True),
        ("cuda:0", "cuda:1", False),
        ("cpu", "cpu", True),
        ("cpu", "cuda", False),
        ("cuda:0", "cpu", False),
    ],
)
def test_a_batch_that_is_there_is_not_copied(
    monkeypatch: pytest.MonkeyPatch, here: str, there: str, stays: bool
) -> None:
    batch, copied = full().replace(image=Elsewhere(here)), full()
    monkeypatch.setattr(Batch, "map", lambda self, function: copied)
    assert batch.to(there) is (batch if stays else copied)
