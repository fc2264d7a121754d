"""CIFAR ResNets: sizes of the paper, timm's interface, published checkpoints."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from lightning_modules.backbones.cifar_resnet import shortcut_a
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "/nonexistent"))
TEST_BATCH = DATA_ROOT / "cifar-10-batches-py" / "test_batch"
needs_data = pytest.mark.skipif(
    not (TEST_BATCH.is_file() and (DATA_ROOT / "weights").is_dir()),
    reason="needs DATA_ROOT with cifar-10-batches-py/ and weights/",
)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.73)])
def test_sizes_of_the_paper(depth: int, millions: float) -> None:
    """Table 6 of He et al. 2016: parameters (in millions; 1.7 M for 110) and layers with weights."""
    with torch.device("meta"):
        model = timm.create_model(f"cifar_resnet{depth}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == depth


def test_shortcut_by_hand() -> None:
    x = torch.randn(2, 4, 5, 6)
    out = shortcut_a(x, 8, 2)
    assert out.shape == (2, 8, 3, 3)
    for b, c, i, j in np.ndindex(2, 8, 3, 3):
        assert out[b, c, i, j] == (x[b, c - 2, 2 * i, 2 * j] if 2 <= c < 6 else 0)
    assert shortcut_a(x, 4, 1) is x


def test_timm_interface() -> None:
    model = timm.create_model("cifar_resnet20", num_classes=7, in_chans=4, width=8, drop_rate=0.5).eval()
    image = torch.rand(2, 4, 32, 32)
    assert model.forward_features(image).shape == (2, 32, 8, 8)
    features = model.forward_head(model.forward_features(image), pre_logits=True)
    assert features.shape == (2, model.num_features) == (2, model.head_hidden_size)
    torch.testing.assert_close(features, model.forward_features(image).mean((2, 3)))
    assert torch.equal(model(image), model.get_classifier()(features))
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    model.double().reset_classifier(3, "catavgmax")
    assert model.get_classifier().weight.shape == (3, 64) == (3, model.head_hidden_size)
    assert model(image.double()).dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(
        model(image.double()), model.forward_head(model.forward_features(image.double()), pre_logits=True)
    )


def test_checkpointing_changes_no_gradient() -> None:
    model = timm.create_model("cifar_resnet20", width=4)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    image = torch.rand(3, 3, 32, 32)
    for net in (model, other):
        net(image).square().sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_features_only_and_layer_groups() -> None:
    maps = timm.create_model("cifar_resnet20", features_only=True, out_indices=(0, 1, 2))(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
    model = timm.create_model("cifar_resnet20")
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert len(groups) == 1 + 9 + 1  # stem, blocks, classifier


def test_no_hub_weights() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for cifar_resnet20"):
        timm.create_model("cifar_resnet20", pretrained=True)


@needs_data
@pytest.mark.parametrize(("depth", "correct"), [(20, 9173), pytest.param(56, 9339, marks=pytest.mark.slow)])
def test_published_checkpoints_on_the_real_test_set(depth: int, correct: int) -> None:
    """91.73 % and 93.39 % of the 10,000 test images, as published with the checkpoints."""
    path = DATA_ROOT / "weights" / f"cifar10_resnet{depth}.safetensors"
    model = timm.create_model(f"cifar_resnet{depth}", num_classes=10, checkpoint_path=str(path)).eval()
    model.load_state_dict(load_file(path), strict=True)
    backbone = create_backbone(name=f"cifar_resnet{depth}", pretrained=str(path))
    network = Network(backbone, Linear(backbone.num_features, 10)).eval()
    network.head.load_state_dict({"weight": model.linear.weight, "bias": model.linear.bias})
    batch = pickle.loads(TEST_BATCH.read_bytes(), encoding="latin1")  # noqa: S301  the dataset's own format
    images = torch.from_numpy(batch["data"]).view(-1, 3, 32, 32)
    labels = torch.tensor(batch["labels"])
    hits = 0
    with torch.inference_mode():
        for image, label in zip(images.split(500), labels.split(500), strict=True):
            hits += int((network(image.float() / 255).logits.argmax(1) == label).sum())
    assert hits == correct
