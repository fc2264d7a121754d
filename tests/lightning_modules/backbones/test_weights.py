"""Weights of others: they take the way of timm's own, and what does not fit has one message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.backbones.weights import timms_filter

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3}
#: Model, its keys, sizes of the images in the file and now. One of each way in which timm resamples.
RESIZED = {
    "vit": ("vit_tiny_patch16_224", SMALL, 64, 96),
    "vit, smaller": ("test_vit", {}, 160, 64),
    "vit without class token": ("vit_base_patch16_gap_224", SMALL, 64, 48),
    "deit": ("deit_tiny_distilled_patch16_224", SMALL, 64, 96),
    "deit3": ("deit3_small_patch16_224", SMALL, 64, 96),
    "flexivit": ("flexivit_small", SMALL, 64, 96),
    "beit": ("beit_base_patch16_224", SMALL, 64, 96),
    "eva": ("eva02_tiny_patch14_224", {**SMALL, "num_heads": 2}, 56, 84),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}, 56, 112),
}


def saved(path: Path, name: str, **keys: Any) -> Path:
    """Random weights of a timm model with a classifier of 7 classes."""
    torch.manual_seed(0)
    state = timm.create_model(name, num_classes=7, **keys).state_dict()
    save_file({key: torch.randn_like(v) if v.is_floating_point() else v for key, v in state.items()}, path)
    return path


@pytest.mark.parametrize("case", RESIZED)
@pytest.mark.parametrize("channels", [3, 1])
def test_another_image_size_is_resampled_as_timm_does(tmp_path: Path, case: str, channels: int) -> None:
    name, keys, before, now = RESIZED[case]
    sizes = {"window_size": now // 8} if case == "swin" else {}
    path = saved(tmp_path / "x.safetensors", name, img_size=before, **keys)
    settings = {**keys, **sizes, "img_size": now}
    with pytest.warns(UserWarning, match=rf"{name}: timm resamples .* of .*x.safetensors \(.* from \[.*\] to \["):
        ours = create_backbone(
            name=name, pretrained=str(path), in_channels=channels, kwargs=settings
        ).model.state_dict()
    overlay = {"file": str(path), "num_classes": 7, "custom_load": False}
    timms = timm.create_model(
        name, pretrained=True, num_classes=0, in_chans=channels, pretrained_cfg_overlay=overlay, **settings
    ).state_dict()
    assert list(ours) == list(timms)
    for key, value in timms.items():
        assert torch.equal(ours[key], value), key
    stored = load_file(path)
    assert any(key in stored and stored[key].shape != value.shape for key, value in ours.items())


def test_the_same_image_size_is_taken_as_it_is(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = saved(tmp_path / "x.safetensors", "test_vit")
    model = create_backbone(name="test_vit", pretrained=str(path)).model
    stored = load_file(path)
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    assert not [warning for warning in recwarn if "resamples" in str(warning.message)]


def test_filters_of_one_argument_are_called_as_timm_calls_them(tmp_path: Path) -> None:
    """densenet's takes no model; it brings torchvision's names into timm's."""
    assert timms_filter("test_resnet", 3, {}) is None
    path = saved(tmp_path / "x.safetensors", "densenet121")
    old = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key): value.abs() for key, value in load_file(path).items()
           if not key.endswith("num_batches_tracked")}  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, path)
    model = create_backbone(name="densenet121", pretrained=str(path)).model
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(model.state_dict()[key], old["features.denseblock1.denselayer1.norm.1.weight"])


def test_a_file_that_timms_filter_cannot_read_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(3), "pos_embed": torch.zeros(2)}, path)
    with pytest.raises(
        ValueError, match=r"x.safetensors does not fit the timm model test_vit .*missing: .*other shape"
    ):
        create_backbone(name="test_vit", pretrained=str(path))


FIRST, BN = "conv1.0.weight", "bn1.running_var"


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (FIRST, lambda value: torch.zeros(()), r"other shape: conv1.0.weight \[\] in the file"),
        (FIRST, lambda value: torch.zeros(8), r"other shape: conv1.0.weight \[8\] in the file"),
        (FIRST, lambda value: value[:, :0], r"other shape: conv1.0.weight \[\d+, 0, 3, 3\] in the file"),
        (FIRST, lambda value: value[:, :2], r"other shape: conv1.0.weight \[\d+, 2, 3, 3\] in the file"),
        (FIRST, lambda value: value.to(torch.int8), "other numbers: conv1.0.weight: numbers of type int8; allowed are"),
        (FIRST, lambda value: value.to(torch.float8_e5m2), "numbers of type float8_e5m2; allowed are float64, float32"),
        (FIRST, lambda value: value * float("nan"), r"conv1.0.weight holds \d+ value\(s\) that are not finite numbers"),
        (FIRST, lambda value: value * float("inf"), r"conv1.0.weight holds \d+ value\(s\) that are not finite numbers"),
        (FIRST, lambda value: value.double() * 1e200, r"conv1.0.weight holds \d+ value\(s\) that are not finite"),
        (BN, lambda value: -value.abs() - 1, "bn1.running_var is a variance and holds negative values; the file is"),
        ("bn1.num_batches_tracked", lambda value: value + 0.5, "num_batches_tracked: numbers of type float32; allowed"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_weights_that_nothing_can_be_computed_with(
    tmp_path: Path, key: str, change: Any, message: str, channels: int
) -> None:
    path = saved(tmp_path / "x.safetensors", "test_resnet")
    state: dict[str, Tensor] = load_file(path)
    state = {name: value.abs() if name.endswith("running_var") else value for name, value in state.items()}
    assert key in state
    save_file(state | {key: change(state[key]).contiguous()}, path)
    with pytest.raises(ValueError, match=rf"x.safetensors does not fit the timm model test_resnet .*{message}"):
        create_backbone(name="test_resnet", pretrained=str(path), in_channels=channels)


def test_files_of_other_widths_and_channels_are_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", "test_resnet")
    state = {
        key: value.abs().half() if value.is_floating_point() else value.int() for key, value in load_file(path).items()
    }
    save_file(state, path)
    model = create_backbone(name="test_resnet", pretrained=str(path)).model
    assert torch.equal(model.state_dict()[FIRST], state[FIRST].float())
    save_file(timm.create_model("test_resnet", num_classes=0, in_chans=5).state_dict(), path)
    assert create_backbone(name="test_resnet", pretrained=str(path), in_channels=5).in_channels == 5


@pytest.mark.parametrize("data", [b"", b"\x08" + bytes(7), b"\xff" * 8 + b"{}", b"\x02" + bytes(7) + b"[]"])
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"is not a safetensors file, or is damaged \(.+\); convert it with"):
        create_backbone(name="test_resnet", pretrained=str(tmp_path / "x.safetensors"))
