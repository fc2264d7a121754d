"""Backbones: feature sizes over timm's families, local weights, freezing, messages."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.backbones.weights import classifier_keys
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "/nonexistent"))
LITE0 = DATA_ROOT / "weights" / "tf_efficientnet_lite0.safetensors"

# One small model of 32 of timm's modules; a lower size where the model takes any size.
FAMILIES = {
    "test_vit": 160, "test_byobnet": 64, "test_coatnet": 160, "test_convnext": 64, "test_nfnet": 64, "test_resnet": 64,
    "test_efficientnet": 64, "test_mambaout": 64, "test_vit_relpos": 160, "lcnet_035": 64, "starnet_s050": 64,
    "dla46x_c": 64, "mobilevit_xxs": 64, "edgenext_xx_small": 64, "repghostnet_050": 64, "ghostnet_050": 64,
    "ese_vovnet19b_slim_dw": 64, "efficientvit_b0": 64, "efficientvit_m0": 224, "cspnext_tiny": 64, "regnetx_002": 64,
    "fasternet_t0": 64, "cs3darknet_focus_s": 64, "iformer_t": 224, "inception_next_atto": 64, "levit_128s": 224,
    "swiftformer_xs": 224, "efficientformerv2_s0": 224, "fastvit_t8": 64, "pvt_v2_b0": 64, "rexnet_100": 64,
    "xcit_nano_12_p8_224": 64, "hgnetv2_b0": 64, "crossvit_tiny_240": 240,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """timm's own weights of a small model, with a classifier of 7 classes."""
    torch.manual_seed(0)
    path = tmp_path / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    return path


def features_of(name: str, size: int) -> tuple[torch.Tensor, int]:
    backbone = create_backbone(name=name)
    network = Network(backbone, Linear(backbone.num_features, 3)).eval()
    with torch.no_grad():
        return network(torch.rand(2, backbone.in_channels, size, size)).features, backbone.num_features


def test_families_cover_at_least_30_modules() -> None:
    module_of = {name: module for module in timm.list_modules() for name in timm.list_models(module=module)}
    assert len({module_of[name] for name in FAMILIES}) >= 30


@pytest.mark.parametrize("name", FAMILIES)
def test_features_have_the_declared_size(name: str) -> None:
    features, declared = features_of(name, FAMILIES[name])
    assert features.shape == (2, declared)
    assert torch.isfinite(features).all()


@pytest.mark.slow
def test_every_timm_model_has_the_declared_size() -> None:
    """All names, on the meta device: shapes without memory or arithmetic. About 8 minutes on one core."""
    seen = 0
    for name in timm.list_models():
        with torch.device("meta"):
            backbone = create_backbone(name=name)
            network = Network(backbone, Linear(backbone.num_features, 3)).eval()
            size = backbone.model.pretrained_cfg["input_size"][1:]
            features = network.pool(network.backbone.forward_features(torch.zeros(2, 3, *size)))
        assert features.shape == (2, backbone.num_features), name
        seen += 1
    assert seen >= 1371 + 5 + 384  # timm 1.0.31, the CIFAR ResNets, the small stems


def test_encoders_without_a_head_are_averaged_over_positions() -> None:
    with torch.device("meta"):
        backbone = create_backbone(name="qwen3_vit_88m_enc")
        network = Network(backbone, Linear(backbone.num_features, 3))
    assert backbone.headless
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 5, backbone.num_features, generator=generator)
    by_hand = torch.stack([sum(t[i, j] for i in range(3) for j in range(5)) / 15 for t in tokens])
    torch.testing.assert_close(network.pool(tokens), by_hand)
    torch.testing.assert_close(network.pool(tokens.permute(0, 3, 1, 2)), by_hand)


def test_constants_are_the_models_own() -> None:
    assert create_backbone(name="test_resnet").mean == timm.get_pretrained_cfg("test_resnet").mean
    assert create_backbone(name="tf_efficientnet_lite0").std == (0.5, 0.5, 0.5)
    resnet = create_backbone(name="resnet18", in_channels=1)
    assert resnet.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert create_backbone(name="resnet18", in_channels=4).std == pytest.approx(((0.229 + 0.224 + 0.225) / 3,) * 4)
    assert create_backbone(name="test_resnet", mean=[0, 0.5, 1], std=[1, 2, 3]).mean == (0.0, 0.5, 1.0)


def test_kwargs_reach_timm() -> None:
    backbone = create_backbone(name="test_resnet", kwargs={"global_pool": "catavgmax"})
    assert backbone.num_features == 2 * create_backbone(name="test_resnet").num_features


def test_local_weights_equal_timms_own_loading(weights: Path) -> None:
    ours = create_backbone(name="test_resnet", pretrained=str(weights)).model.eval()
    timms = timm.create_model("test_resnet", num_classes=7, checkpoint_path=str(weights)).eval()
    image = torch.rand(2, 3, 64, 64)
    expected = timms.forward_head(timms.forward_features(image), pre_logits=True)
    assert torch.equal(ours.forward_head(ours.forward_features(image), pre_logits=True), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_local_weights_adapt_to_channels_as_timm_does(weights: Path, channels: int) -> None:
    ours = create_backbone(name="test_resnet", pretrained=str(weights), in_channels=channels).model
    overlay = {"file": str(weights), "num_classes": 7}
    timms = timm.create_model(
        "test_resnet", pretrained=True, num_classes=0, in_chans=channels, pretrained_cfg_overlay=overlay
    )
    for (key, value), (other, expected) in zip(ours.state_dict().items(), timms.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(value, expected), key


def test_one_channel_sums_the_first_kernel(weights: Path) -> None:
    model = create_backbone(name="test_resnet", pretrained=str(weights), in_channels=1).model
    first = timm.get_pretrained_cfg("test_resnet").first_conv + ".weight"
    stored = load_file(weights)[first]
    torch.testing.assert_close(model.state_dict()[first], stored[:, :1] + stored[:, 1:2] + stored[:, 2:])


def test_classifier_keys() -> None:
    assert classifier_keys("test_resnet", 3, {}, 7).keys() == {"fc.weight", "fc.bias"}
    assert classifier_keys("levit_128s", 3, {}).keys() > {"head.linear.weight", "head.linear.bias"}
    assert classifier_keys("cifar_resnet20", 3, {}, 10)["linear.weight"] == (10, 64)


def test_misfit_weights_are_listed(weights: Path) -> None:
    with pytest.raises(
        ValueError, match=r"does not fit the timm model resnet18 .*missing: .* and \d+ more.*other shape"
    ):
        create_backbone(name="resnet18", pretrained=str(weights))
    state = load_file(weights)
    state["stranger"] = torch.zeros(1)
    save_file(state, weights)
    with pytest.raises(ValueError, match="unexpected: stranger"):
        create_backbone(name="test_resnet", pretrained=str(weights))


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file .* give the path of a safetensors file"):
        create_backbone(name="test_resnet", pretrained=str(tmp_path / "absent.safetensors"))
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        create_backbone(name="test_resnet", pretrained=str(tmp_path / "text.safetensors"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "resnet81"}, r"backbone.name=resnet81 is not known; did you mean resnet.* names are allowed\)"),
        ({"name": "resnet18.nonsense"}, "resnet18 has no weights 'nonsense'; choose from .*a1_in1k"),
        ({"name": "hf-hub:timm/resnet18"}, "hub and folder sources are not allowed"),
        ({"name": "local-dir:/tmp/model"}, "hub and folder sources are not allowed"),
        ({"name": "vit_tiny_patch16_224_small"}, "no small-image stem for vit_tiny_patch16_224; .* resnet, res2net"),
        ({"name": "cifar_resnet20", "pretrained": True}, "timm has no weights for cifar_resnet20"),
        (
            {"name": "test_resnet", "in_channels": 0},
            r"in_channels=0 is out of range; allowed: 1 <= in_channels <= 10000 \(int\)",
        ),
        ({"name": "test_resnet", "mean": [0.5]}, "backbone.mean has 1 values for in_channels=3"),
        ({"name": "test_resnet", "std": [0.5, 0.0, 0.5]}, r"std=\[0.5, 0.0, 0.5\] is out of range; allowed: std > 0"),
        ({"name": "test_resnet", "kwargs": {"num_classes": 3}}, "num_classes=3 is not allowed: the head sets it"),
        ({"name": "test_resnet", "kwargs": {"in_chans": 1}}, "in_chans=1 is not allowed: use in_channels"),
        ({"name": "test_resnet", "kwargs": {"depht": 3}}, "does not take in_channels=3, kwargs depht=3: .*unexpected"),
    ],
)
def test_errors(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(**keys)


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    message = "could not get timm's weights for resnet18 .*set backbone.pretrained=FILE"
    with pytest.raises(FileNotFoundError, match=message):
        create_backbone(name="resnet18", pretrained=True)


def test_freeze_keeps_weights_and_statistics() -> None:
    backbone = create_backbone(name="test_resnet", freeze=True)
    network = copy.deepcopy(Network(backbone, Linear(backbone.num_features, 3))).train()
    assert network.training and network.head.training and not network.backbone.training
    assert network.backbone is not backbone.model
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
    network(torch.rand(4, 3, 64, 64)).logits.square().sum().backward()
    optimizer.step()
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_without_freeze_statistics_move() -> None:
    model = create_backbone(name="test_resnet").model
    before = model.bn1.running_mean.clone()
    model.train().forward_features(torch.rand(4, 3, 64, 64))
    assert not torch.equal(model.bn1.running_mean, before)


@pytest.mark.skipif(not LITE0.is_file(), reason="needs DATA_ROOT/weights/tf_efficientnet_lite0.safetensors")
def test_tf_efficientnet_lite0_from_the_local_file() -> None:
    ours = create_backbone(name="tf_efficientnet_lite0", pretrained=str(LITE0))
    timms = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(LITE0)).eval()
    assert ours.mean == ours.std == (0.5, 0.5, 0.5)
    network = Network(ours, Linear(ours.num_features, 1000)).eval()
    with torch.no_grad():
        network.head.weight.copy_(timms.classifier.weight)
        network.head.bias.copy_(timms.classifier.bias)
        image = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(network(image).logits, timms(image * 2 - 1), rtol=0, atol=1e-5)
