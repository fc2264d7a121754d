"""Export: plain timm loads what was written, and it gives what the network gave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.batch import Output
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.cosine import Cosine
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network
from recipes.building.exported import head_path, load_exported
from recipes.exporting.export import export_safetensors

CLASSES = ["apple", "pear", "plum"]
PREPROCESSING = {"image_size": 48, "resize_size": 64, "interpolation": "bicubic", "channels": "RGB"}


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Eight real tiles of the embedded set, ``[8, 3, 48, 48]`` in [0, 1]."""
    mosaic = Path(__file__).parents[3] / "datamodules" / "grocery_mini" / "grocery40_48.jpg"
    if not mosaic.is_file():
        pytest.skip(f"needs {mosaic}")
    with Image.open(mosaic) as image:
        rows = np.asarray(image.crop((0, 0, 8 * 48, 48)))
    return torch.from_numpy(rows.reshape(48, 8, 48, 3).transpose(1, 3, 0, 2).copy()).float() / 255


def make(name: str, head: type = Linear, settings: dict[str, Any] | None = None, **keys: Any) -> Network:
    """A network whose norm statistics are not the initial ones, so that a lost one would show."""
    torch.manual_seed(0)
    backbone = create_backbone(name=name, **keys)
    network = Network(backbone, head(backbone.num_features, len(CLASSES), **(settings or {})))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def export(network: Network, path: Path, images: Tensor, **changes: Any) -> list[Path]:
    arguments: dict[str, Any] = {
        "name": network.backbone_name,
        "kwargs": network.backbone_kwargs,
        "in_channels": network.in_channels,
        "classes": CLASSES,
        "preprocessing": PREPROCESSING,
        "sample_images": images,
    }
    return export_safetensors(network, path, **(arguments | changes))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("name", "settings", "imports"),
    [
        ("test_resnet", {}, ""),
        ("test_resnet.r160_in1k", {"bias": False}, ""),
        ("test_efficientnet", {}, ""),
        ("cifar_resnet20", {}, "lightning_modules.backbones"),
        ("resnet10t_small", {"dropout_prob": 0.5}, "lightning_modules.backbones"),
    ],
)
def test_plain_timm_gives_the_same(
    name: str, settings: dict[str, Any], imports: str, tmp_path: Path, photographs: Tensor
) -> None:
    network = make(name, settings=settings).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    path = tmp_path / "net.safetensors"
    assert export(network, path, photographs) == [path]
    assert os.listdir(tmp_path) == ["net.safetensors"]
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    metadata = metadata_of(path)
    stated = json.loads(metadata["preprocessing"])
    assert json.loads(metadata["classes"]) == CLASSES
    assert (metadata["architecture"], metadata["import"]) == (name, imports)
    assert (stated["input_size"], stated["crop_pct"], stated["interpolation"]) == ([3, 48, 48], 0.75, "bicubic")
    model = timm.create_model(name, num_classes=3, checkpoint_path=str(path)).eval()
    plain = (photographs - torch.tensor(stated["mean"]).view(3, 1, 1)) / torch.tensor(stated["std"]).view(3, 1, 1)
    expected = network.eval()(photographs).logits
    torch.testing.assert_close(model(plain), expected, rtol=0, atol=1e-4)  # another order of rounding in `plain`

    loaded, classes, preprocessing = load_exported(path)
    assert classes == CLASSES and preprocessing == stated and not loaded.training
    assert torch.equal(loaded(photographs).logits, expected)


def test_a_convolutional_classifier_is_reshaped(tmp_path: Path, photographs: Tensor) -> None:
    """timm's dla classifies by a 1x1 convolution."""
    network, path = make("dla46x_c"), tmp_path / "net.safetensors"
    images = torch.nn.functional.interpolate(photographs, size=64)  # its maps do not line up at 48
    assert export(network, path, images) == [path]
    assert torch.equal(load_file(path)["fc.weight"], network.head.weight[:, :, None, None])
    assert torch.equal(load_exported(path)[0].head.weight, network.head.weight)


@pytest.mark.parametrize(
    ("name", "head", "images_like"),
    [("test_resnet", Cosine, 48), ("efficientvit_m0", Linear, 224)],  # its classifier has a norm of its own
)
def test_two_files_where_timms_classifier_does_not_fit(
    name: str, head: type, images_like: int, tmp_path: Path, photographs: Tensor
) -> None:
    images = torch.nn.functional.interpolate(photographs[:2], size=images_like)
    network = make(name, head).eval()
    path = tmp_path / "net.safetensors"
    assert export(network, path, images) == [path, tmp_path / "net.head.safetensors"]
    model = timm.create_model(name, num_classes=0, checkpoint_path=str(path)).eval()
    normalized = network.normalize(images)
    features = model.forward_head(model.forward_features(normalized), pre_logits=True)
    torch.testing.assert_close(features, network(images).features, rtol=0, atol=1e-6)
    assert torch.equal(load_exported(path)[0](images).logits, network(images).logits)
    head_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="net.head.safetensors; exported files that belong together"):
        load_exported(path)


def test_channels_kwargs_and_other_dtypes(tmp_path: Path, photographs: Tensor) -> None:
    network = make("test_resnet", in_channels=1, kwargs={"global_pool": "avgmax"}).bfloat16()
    network.to(memory_format=torch.channels_last)
    export(network, tmp_path / "net.safetensors", photographs[:, :1])
    loaded = load_exported(tmp_path / "net.safetensors")[0]
    assert {value.dtype for value in load_file(tmp_path / "net.safetensors").values()} <= {torch.float32, torch.int64}
    assert loaded.in_channels == 1 and loaded.backbone.global_pool.pool_type == "avgmax"
    assert loaded.normalize.mean.dtype == torch.float64


def test_mismatch_leaves_nothing(tmp_path: Path, photographs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        key = next(key for key in tensors if key.startswith("conv1"))
        save_file(tensors | {key: tensors[key] * 1.01}, file, metadata)

    monkeypatch.setattr("recipes.exporting.export.save_file", corrupted)
    with pytest.raises(ValueError, match="gives other logits than the network: largest difference .* nothing was kept"):
        export(make("test_resnet"), tmp_path / "net.safetensors", photographs)
    assert os.listdir(tmp_path) == []


def test_surgery_that_timm_cannot_load_is_refused(tmp_path: Path, photographs: Tensor) -> None:
    network = make("test_resnet")
    network.backbone.bn1.register_buffer("extra", torch.zeros(1))
    with pytest.raises(ValueError, match=r"(?s)cannot load the exported weights, nothing was kept: .*extra.*surgery"):
        export(network, tmp_path / "net.safetensors", photographs)
    changed = make("test_resnet")
    changed.backbone.act1 = torch.nn.GELU()
    with pytest.raises(ValueError, match="gives other logits than the network"):
        export(changed, tmp_path / "net.safetensors", photographs)
    assert os.listdir(tmp_path) == []


def test_nan_is_a_mismatch(tmp_path: Path, photographs: Tensor) -> None:
    network = make("test_resnet")
    with torch.no_grad():
        network.head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="largest difference nan"):
        export(network, tmp_path / "net.safetensors", photographs)


def test_argument_errors(tmp_path: Path, photographs: Tensor) -> None:
    network, path = make("test_resnet"), tmp_path / "net.safetensors"
    for message, changes in {
        "2 class names for a head of 3 classes": {"classes": ["a", "b"]},
        r"preprocessing lacks \['interpolation', 'resize_size'\]": {"preprocessing": {"image_size": 48}},
        "the check needs at least one image": {"sample_images": photographs[:0]},
    }.items():
        with pytest.raises(ValueError, match=message):
            export(network, path, photographs, **changes)
    with pytest.raises(ValueError, match="timm tells the format by the ending; use net.safetensors"):
        export(network, tmp_path / "net.bin", photographs)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        export(network, path, photographs)
    assert path.read_text() == "precious"


def test_reading_errors(tmp_path: Path, photographs: Tensor) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(path)
    path.write_text("text")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_exported(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="was not exported by this library; .* backbone.pretrained="):
        load_exported(path)


@pytest.mark.parametrize("kind", ["os.system", "torch.nn.Linear", "lightning_modules.heads.base.Tensor"])
def test_nothing_outside_the_heads_folder_is_imported(kind: str, tmp_path: Path, photographs: Tensor) -> None:
    path = tmp_path / "net.safetensors"
    export(make("test_resnet", Cosine), path, photographs)
    metadata = metadata_of(path)
    head = json.loads(metadata["head"]) | {"class": kind}
    save_file(load_file(path), path, metadata | {"head": json.dumps(head)})
    with pytest.raises(ValueError, match=rf"the metadata describe no network \(head: '{kind}'"):
        load_exported(path)
    save_file(load_file(path), path, metadata | {"architecture": "local-dir:/tmp"})
    with pytest.raises(ValueError, match="hub and folder sources are not allowed"):
        load_exported(path)


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kwargs", "{", r"the metadata cannot be read \(JSONDecodeError"),
        ("kwargs", "[]", r"kwargs in the metadata must be a dict, got \[\]"),
        ("kwargs", DEEP, "the metadata cannot be read|must be a dict"),
        ("kwargs", '{"img_size": "x"}', "the metadata describe no network"),
        ("kwargs", '{"stem_chs": -3}', "the metadata describe no network"),
        ("kwargs", '{"act_layer": "nothing"}', "the metadata describe no network"),
        ("format_version", "9999", "has format_version '9999' in the metadata, this one reads up to 1"),
        ("format_version", "x", "has format_version 'x' in the metadata"),
        ("in_channels", "true", "in_channels in the metadata must be a int, got True"),
        ("in_channels", "0", r"the metadata describe no network \(in_channels=0 is out of range"),
        ("in_channels", "9" * 5000, r"the metadata cannot be read \(ValueError"),
        ("in_channels", "9" * 30, "in the metadata, in_channels: the number does not fit into 64 bits"),
        ("classes", '["a", 3, "c"]', "in the metadata, class names are text of at most 1000 characters, got '3'"),
        ("classes", "[]", "in the metadata, classes must be a list of 1 to 100,000 names"),
        ("classes", '["a", "b"]', r"does not hold the weights of test_resnet: head.weight: \[3, .* in the file, \[2"),
        ("surgery", "[]", "surgery in the metadata must be a dict"),
        ("surgery", '{"x": 3}', "the metadata describe no network"),
        ("architecture", "resnet81", r"the metadata describe no network \(backbone.name=resnet81 is not known"),
        ("preprocessing", {"mean": [0.5]}, "the metadata describe no network .*backbone.mean has 1 values"),
        (
            "preprocessing",
            {"mean": ["x"] * 3},
            r"in the metadata, preprocessing.mean must be a list of numbers, got \['x",
        ),
        ("preprocessing", {"mean": None}, "preprocessing.mean in the metadata must be a list, got None"),
        ("preprocessing", {"std": [0, 1, 1]}, "describe no network .*std=.* is out of range; allowed: std > 0"),
        (
            "preprocessing",
            {"std": [float("nan")] * 3},
            "in the metadata, preprocessing.std.0: nan is not a finite number",
        ),
        ("preprocessing", {"image_size": 0}, "in the metadata, preprocessing.image_size=0 must lie in 1"),
        ("preprocessing", {"interpolation": 3}, "in the metadata, preprocessing.interpolation must be of type str"),
        ("head", {"class": 3}, "head.class in the metadata must be a str, got 3"),
        ("head", {"settings": {"nothing": 1}}, "the metadata describe no network .*nothing"),
        ("head", {"settings": {"dropout_prob": "x"}}, "the metadata describe no network .*dropout_prob='x'"),
        ("head", {"keys": {"weight": 3}}, "in the metadata, head.keys.weight must be a name, got 3"),
        (
            "head",
            {"keys": {"weight": "fc.weight", "bias": "fc.weight"}},
            "in the metadata, head.keys names one weight twice",
        ),
        ("head", {"keys": {"weight": "nothing"}}, "lacks the weight nothing, which its metadata name"),
        (
            "head",
            {"keys": {"weight": "fc.bias", "bias": "fc.weight"}},
            r"does not hold the weights of .* head.weight: \[3\]",
        ),
    ],
)
def test_metadata_of_another_form(tmp_path: Path, photographs: Tensor, key: str, value: Any, message: str) -> None:
    path = tmp_path / "net.safetensors"
    export(make("test_resnet"), path, photographs)
    metadata = metadata_of(path)
    if isinstance(value, dict):
        value = json.dumps(json.loads(metadata[key]) | value)
    save_file(load_file(path), path, metadata | {key: value})
    with pytest.raises(ValueError, match=rf"net.safetensors.*(?:{message})") as error:
        load_exported(path)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.int8), "numbers of type int8; allowed are"),
        (lambda value: value * float("nan"), r"value\(s\) that are not finite numbers"),
        (lambda value: value[None], r"in the file, \["),
    ],
)
def test_weights_of_another_form(tmp_path: Path, photographs: Tensor, change: Any, message: str) -> None:
    path = tmp_path / "net.safetensors"
    export(make("test_resnet"), path, photographs)
    metadata, state = metadata_of(path), load_file(path)
    for key in ("conv1.0.weight", "fc.bias"):
        save_file(state | {key: change(state[key])}, path, metadata)
        if key == "fc.bias" and "\\[" in message:
            continue  # a head's weight is brought into its shape
        with pytest.raises(ValueError, match=rf"does not hold the weights of test_resnet: .*{message}"):
            load_exported(path)


class Trained(Cosine):
    """A head that does more in training than it has to afterwards."""

    def plain(self) -> Linear:
        head = Linear(self.in_features, self.num_classes)
        head.weight.data, head.bias.data = self.weight.detach(), torch.zeros(self.num_classes)
        return head

    def forward(self, features_BD: Tensor, label: Tensor | None = None) -> Output:
        return Output(features=features_BD, logits=features_BD @ self.weight.T)


def test_the_plain_head_is_what_is_exported(photographs: Tensor, tmp_path: Path) -> None:
    network = make("test_efficientnet", Trained).eval()
    assert export(network, tmp_path / "x.safetensors", photographs) == [tmp_path / "x.safetensors"]
    found = load_exported(tmp_path / "x.safetensors")[0]
    assert type(found.head) is Linear and type(network.head) is Trained and Linear(4, 2).plain().bias is not None
    torch.testing.assert_close(found(photographs).logits, network(photographs).logits, rtol=0, atol=1e-5)
