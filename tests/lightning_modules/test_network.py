"""The network: values re-derived from timm, dtypes, layouts, copies, messages."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor

from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.cosine import Cosine
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network, Normalize


def make(name: str = "test_resnet", head: type = Linear, **keys: object) -> Network:
    torch.manual_seed(0)
    backbone = create_backbone(name=name, **keys)  # type: ignore[arg-type]
    return Network(backbone, head(backbone.num_features, 5))


def test_equals_the_plain_timm_model() -> None:
    network = make("resnet18").double().eval()
    model = timm.create_model("resnet18", num_classes=5).double().eval()
    state = network.backbone.state_dict() | {"fc.weight": network.head.weight, "fc.bias": network.head.bias}
    model.load_state_dict(state, strict=True)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    plain = image.clone()
    for c, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        plain[:, c] = (image[:, c] - mean) / std
    output = network(image, want_maps=("final",))
    torch.testing.assert_close(output.logits, model(plain), rtol=0, atol=1e-10)
    torch.testing.assert_close(output.features, output.maps["final"].mean((2, 3)))
    assert network(image).maps == {}


def test_state_dict_keys_are_timms() -> None:
    network = make()
    timms = timm.create_model("test_resnet", num_classes=0).state_dict()
    expected = ["normalize.mean", "normalize.std", *(f"backbone.{key}" for key in timms), "head.weight", "head.bias"]
    assert list(network.state_dict()) == expected
    assert all(isinstance(value, Tensor) for value in network.state_dict().values())


def test_mix_map_sits_before_the_pooling() -> None:
    network = make().eval()
    image = torch.rand(4, 3, 64, 64)
    swap = [1, 0, 3, 2]
    seen = []

    def mix(feature_map: Tensor) -> Tensor:
        seen.append(feature_map.shape)
        return 0.25 * feature_map + 0.75 * feature_map[swap]

    plain, mixed = network(image, want_maps=["final"]), network(image, mix_map=mix, want_maps=["final"])
    assert len(seen) == 1 and len(seen[0]) == 4
    by_hand = 0.25 * plain.maps["final"] + 0.75 * plain.maps["final"][swap]
    torch.testing.assert_close(mixed.maps["final"], by_hand)
    torch.testing.assert_close(mixed.features, by_hand.mean((2, 3)))


@pytest.mark.parametrize("head", [Linear, Cosine])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_a_batch_of_one(head: type, dtype: torch.dtype) -> None:
    network = make(head=head).to(dtype).eval()
    image = torch.rand(1, 3, 64, 64, dtype=dtype, requires_grad=True)
    output = network(image)
    assert output.features.dtype == dtype
    output.logits.float().square().sum().backward()
    assert torch.isfinite(output.logits).all() and torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_autocast() -> None:
    network = make().eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(image)
    torch.testing.assert_close(output.logits.float(), network(image).logits, rtol=0.1, atol=0.1)


def test_channels_last() -> None:
    network = make().eval()
    image = torch.rand(2, 3, 64, 64)
    expected = network(image).logits
    network.to(memory_format=torch.channels_last)
    last = image.to(memory_format=torch.channels_last)
    assert network.normalize(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(last).logits, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(channels: int) -> None:
    network = make(in_channels=channels).eval()
    assert network(torch.rand(2, channels, 64, 64)).logits.shape == (2, 5)
    with pytest.raises(ValueError, match=rf"shape \[2, 2, 64, 64\]: the network takes \[B, {channels}, H, W\]"):
        network(torch.rand(2, 2, 64, 64))


def test_deepcopy_shares_nothing() -> None:
    network = make().train()
    other = copy.deepcopy(network)
    image = torch.rand(2, 3, 64, 64)
    assert torch.equal(other.eval()(image).logits, network.eval()(image).logits)
    ours = {value.data_ptr() for value in network.state_dict().values()}
    assert not ours & {value.data_ptr() for value in other.state_dict().values()}


def test_a_checkpoint_brings_its_constants() -> None:
    network, other = make(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]), make()
    other.load_state_dict(network.state_dict(), strict=True)
    image = torch.rand(2, 3, 64, 64)
    assert torch.equal(other.eval()(image).logits, network.eval()(image).logits)


def test_constants_stay_exact_through_casts() -> None:
    normalize = Normalize((0.485,), (0.229,))
    normalize.bfloat16().half().float().to("cpu", torch.float64)
    assert normalize.mean.tolist() == [0.485] and normalize.std.tolist() == [0.229]
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(normalize(image), (image - 0.485) / 0.229, rtol=0, atol=1e-14)
    moved = normalize.float().to("meta")
    assert moved.mean.is_meta and moved.to_empty(device="cpu").mean.dtype == torch.float64


def test_normalize_leaves_the_image_alone() -> None:
    normalize = Normalize((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    image = torch.rand(2, 3, 4, 4)
    before, version = image.clone(), image._version
    normalize(image)
    assert torch.equal(image, before) and image._version == version
    leaf = torch.rand(1, 3, 2, 2, requires_grad=True)
    normalize(leaf).sum().backward()
    assert leaf.grad[0, :, 0, 0].tolist() == [4.0, 2.0, 1.0]


def test_errors() -> None:
    network = make()
    with pytest.raises(TypeError, match="uint8: the network takes floats in .* divide by 255"):
        network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"shape \[3, 64, 64\]: the network takes"):
        network(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match=r"want_maps=\['layer3'\]: the only map is 'final'"):
        network(torch.rand(1, 3, 64, 64), want_maps=("layer3",))
    with pytest.raises(ValueError, match="the head takes 7 features, backbone resnet18 gives 512"):
        Network(create_backbone(name="resnet18"), Linear(7, 5))
    unpooled = make(kwargs={"global_pool": ""})
    with pytest.raises(ValueError, match="leave global_pool out of backbone.kwargs"):
        unpooled(torch.rand(1, 3, 64, 64))
    branches = make("crossvit_tiny_240")
    with pytest.raises(TypeError, match="mix_map needs one feature map, backbone crossvit_tiny_240 gives a list of 2"):
        branches(torch.rand(1, 3, 240, 240), mix_map=lambda x: x)
