"""Small-image stems: resolution kept, keys timm's, pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_modules.backbones.small_stem import BASES, base_name, small_stem
from lightning_modules.backbones.timm_backbone import create_backbone

# name: reduction of the whole net, keys of new kernels
SAMPLES = {
    "resnet18_small": (8, ("conv1.weight",)),
    "resnet50_small": (8, ("conv1.weight",)),
    "wide_resnet50_2_small": (8, ("conv1.weight",)),
    "resnet10t_small": (8, ()),
    "resnetblur50_small": (8, ("conv1.weight",)),
    "ecaresnet50t_small": (8, ()),
    "res2net50_26w_4s_small": (8, ("conv1.weight",)),
    "resnest14d_small": (8, ()),
    "skresnet18_small": (8, ("conv1.weight",)),
    "legacy_seresnet18_small": (8, ("layer0.conv1.weight",)),
    "resnetv2_18_small": (8, ("stem.conv.weight",)),
    "resnetv2_50x1_bit_small": (8, ("stem.conv.weight",)),
    "test_nfnet_small": (8, ()),
    "densenet121_small": (8, ("features.conv0.weight",)),
    "densenetblur121d_small": (8, ()),
    "regnetx_002_small": (16, ()),
    "rexnet_100_small": (16, ()),
    "efficientnet_b0_small": (16, ()),
    "tf_efficientnet_lite0_small": (16, ()),
    "mobilenetv3_small_050_small": (16, ()),
    "hardcorenas_a_small": (16, ()),
    "ghostnet_050_small": (16, ()),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_resolution_and_keys(name: str) -> None:
    reduction, new = SAMPLES[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5).eval()
        base = timm.create_model(base_name(name), num_classes=5)
        for size in (32, 48):
            assert model.forward_features(torch.zeros(2, 3, size, size)).shape[2:] == (size // reduction,) * 2
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    shapes = {key: value.shape for key, value in base.state_dict().items()}
    assert model.small_stem_new == new
    assert list(model.state_dict()) == list(shapes)
    for key, value in model.state_dict().items():
        assert value.shape == (shapes[key] if key not in new else (*shapes[key][:2], 3, 3)), key
    infos = getattr(model.feature_info, "info", model.feature_info)
    assert infos[-1]["reduction"] == reduction
    assert model.pretrained_cfg["architecture"] == name
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.pretrained_cfg["mean"] == base.pretrained_cfg["mean"]


def test_registered_without_hiding_a_timm_name() -> None:
    assert len(BASES) >= 380
    for name, base in BASES.items():
        assert timm.is_model(name) and timm.is_model(base)
        assert timm.models.model_entrypoint(name).__module__ == "lightning_modules.backbones.small_stem"
    assert base_name("resnet18_small.a1_in1k") == "resnet18.a1_in1k"
    assert base_name("convnext_small") == "convnext_small"  # timm's own


@pytest.mark.slow
def test_every_small_model() -> None:
    """All of them on the meta device: about 2 minutes on one core."""
    for name, base in BASES.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0).eval()
            height = model.forward_features(torch.zeros(2, 3, 32, 32)).shape[2]
            assert model.state_dict().keys() == timm.create_model(base, num_classes=0).state_dict().keys(), name
        assert height in (2, 4), name


def test_values_of_a_replaced_stem_by_hand() -> None:
    """resnet18_small is timm's resnet18 whose stem is conv 3x3, norm, activation."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18_small").eval().double()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    x = nn.functional.conv2d(image, model.conv1.weight, padding=1)
    x = model.act1(model.bn1(x))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
    torch.testing.assert_close(model.forward_features(image), x)
    std = model.conv1.weight.std().item()
    assert std == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)  # Kaiming, fan out, as timm initializes resnet18


def test_stride_only_stem_loads_every_weight(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    base = timm.create_model("resnet10t", num_classes=6)
    save_file(base.state_dict(), tmp_path / "w.safetensors")
    model = create_backbone(name="resnet10t_small", pretrained=str(tmp_path / "w.safetensors")).model
    for key, value in model.state_dict().items():
        assert torch.equal(value, base.state_dict()[key]), key
    assert not [w for w in recwarn if "initialization" in str(w.message)]


def test_new_kernel_keeps_its_initialization_with_a_warning(tmp_path: Path) -> None:
    base = timm.create_model("resnet18", num_classes=6)
    save_file(base.state_dict(), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="conv1.weight has another shape in .* keeps its new initialization"):
        model = create_backbone(name="resnet18_small", pretrained=str(tmp_path / "w.safetensors")).model
    for key, value in model.state_dict().items():
        if key != "conv1.weight":
            assert torch.equal(value, base.state_dict()[key]), key
    save_file(model.state_dict(), tmp_path / "small.safetensors")
    again = create_backbone(name="resnet18_small", pretrained=str(tmp_path / "small.safetensors")).model
    assert torch.equal(again.conv1.weight, model.conv1.weight)


def test_hub_weights_pass_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pretrained=True`` loads the original first; only the new kernel starts anew."""
    base = timm.create_model("resnet18").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: dict(base))
    with pytest.warns(UserWarning, match="conv1.weight has another kernel than resnet18"):
        model = create_backbone(name="resnet18_small.a1_in1k", pretrained=True).model
    assert torch.equal(model.layer4[1].conv2.weight, base["layer4.1.conv2.weight"])
    assert model.conv1.weight.shape == (64, 3, 3, 3)


def test_kwargs_pass_through() -> None:
    model = timm.create_model("resnet18_small", in_chans=1, drop_path_rate=0.2, num_classes=3)
    assert model.conv1.weight.shape == (64, 1, 3, 3)
    assert any(type(m).__name__ == "DropPath" for m in model.modules())


def test_errors() -> None:
    with pytest.raises(ValueError, match="resnet18_small cannot be wrapped by features_only"):
        timm.create_model("resnet18_small", features_only=True)
    with pytest.raises(ValueError, match="the stem of this VGG does not reduce the image"):
        small_stem(timm.create_model("vgg11", device="meta"), ("features.0",))
