"""Every surgery on every family of networks: it builds, trains a step, is finite in bf16, folds; or says why not."""

import copy

import pytest
import torch
import yaml

from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from lightning_modules.surgery.base import fold, operate
from lightning_modules.surgery.plain import load_plain_state_dict, plain_state_dict
from recipes.building.make import make
from recipes.configuration.catalogue import CONFIGS

NARROW = {"channels": [64, 32, 64, 128]}
#: Small members of the families, and what keeps them small.
FAMILIES = {
    "resnet18": NARROW,
    "resnetv2_18": NARROW,
    "seresnet18": NARROW,
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "regnety_002": {},
    "densenet121": {"growth_rate": 8, "block_config": [2, 2, 2, 2]},
    "convnext_atto": {"depths": [1, 1, 1, 1]},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "mixer_s32_224": {"img_size": 64},
    "repvgg_a0": {},
    "resnet18_small": NARROW,
    "resnetv2_50x1_bit": {},
    "tf_efficientnet_lite0": {},
}
#: What is refused, and the words that say why.
REFUSED = {
    "ws": {
        "vit_tiny_patch16_224": "matches no module",
        "deit_tiny_patch16_224": "matches no module",
        "mixer_s32_224": "matches no module",
        "resnetv2_50x1_bit": "standardizes its weight itself",
    },
    "bcn": dict.fromkeys(
        ("convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "resnetv2_50x1_bit"), "no"
    ),
    "ghost_bn": dict.fromkeys(
        ("convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "resnetv2_50x1_bit"), "no"
    ),
    "sync_bn": dict.fromkeys(
        ("convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "resnetv2_50x1_bit"), "no"
    ),
    "tract": {"resnetv2_50x1_bit": "standard"},
}
SURGERIES = sorted(path.stem for path in (CONFIGS / "surgery").glob("*.yaml"))


def surgery_of(name, **keys):
    node = yaml.safe_load((CONFIGS / "surgery" / f"{name}.yaml").read_text(encoding="utf-8"))[name]
    return {name: make({**node, **keys}, group="surgery")}


def network_of(family):
    torch.manual_seed(0)
    backbone = create_backbone(name=family, kwargs=FAMILIES[family])
    return Network(backbone, Linear(backbone.num_features, 3))


def train_a_step(network, dtype=None):
    """One update on four images; the sum of the loss terms."""
    parts = Parts(CrossEntropy(), {})
    parts.setup(Context(3, 4, 1, 1, network))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    batch = Batch(torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        result = run_step(parts, batch, Step(0, 0, 0, network, network, 4))
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    optimizer.step()
    return sum(result.terms.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SURGERIES)
def test_it_builds_and_trains_or_says_why_not(name, family):
    network = network_of(family)
    if family in REFUSED.get(name, {}):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(ValueError, match=f"(?i){REFUSED[name][family]}"):
            operate(network.backbone, surgery_of(name))
        after = network.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        return
    surgeries, plain_keys = surgery_of(name), network.backbone.state_dict().keys()
    lines = operate(network.backbone, surgeries)
    assert lines[0].startswith(f"{name}: ") and " changed" in "".join(lines[1:])
    with pytest.raises(ValueError, match="(?i)before|already"):
        operate(network.backbone, surgery_of(name))
    assert train_a_step(network).isfinite()
    assert train_a_step(network, torch.bfloat16).isfinite()
    images, network = torch.rand(2, 3, 64, 64, dtype=torch.float64), network.double().eval()
    with torch.no_grad():
        expected = network(images).logits
        folded = copy.deepcopy(network)
        kept = fold(folded.backbone, surgeries)
        assert torch.allclose(folded(images).logits, expected, atol=1e-9, rtol=1e-9)
    same = folded.backbone.state_dict().keys() == plain_keys
    assert same == (not kept), "what is folded has the keys of the plain backbone"


@pytest.mark.parametrize("name", ["ws", "compander"])
@pytest.mark.parametrize("family", ["resnet18", "efficientnet_b0"])
def test_plain_weights_go_in_and_come_out(name, family):
    """Into the parameters behind the weights, and back; another network gives what this one does."""
    network, other = network_of(family).eval(), network_of(family).eval()
    surgeries = surgery_of(name)
    operate(network.backbone, surgeries)
    plain = plain_state_dict(network.backbone, surgeries)
    other.backbone.load_state_dict(plain)
    other.head = network.head
    again = network_of(family).eval()
    operate(again.backbone, surgery_of(name))
    load_plain_state_dict(again.backbone, plain)
    again.head = network.head
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images).logits
        assert torch.allclose(other(images).logits, expected, atol=1e-4, rtol=1e-4)
        # A standardized weight that is standardized again differs by eps over the variance it once had.
        difference, size = ((again(images).logits - expected).double().norm(), expected.double().norm())
        assert difference < (1e-2 if name == "ws" else 1e-4) * size
    with pytest.raises(ValueError, match="these are not the weights of the plain backbone: missing"):
        load_plain_state_dict(again.backbone, {key: value for key, value in plain.items() if "bn1" not in key})


@pytest.mark.parametrize(
    "names", [("ws", "bcn"), ("ws", "tract"), ("compander", "tract"), ("ws", "ghost_bn", "tract"), ("ws", "compander")]
)
def test_sensible_combinations(names):
    """In any order of the configuration; phases decide."""
    losses = []
    for order in (names, names[::-1]):
        network = network_of("resnet18_small")
        surgeries = {key: value for name in order for key, value in surgery_of(name).items()}
        lines = operate(network.backbone, surgeries)
        assert sum(line.endswith("as they are") for line in lines) == len(names)
        torch.manual_seed(1)
        losses.append(train_a_step(network).item())
        images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        with torch.no_grad():
            expected = network.double().eval()(images).logits
            kept = fold(network.backbone, surgeries)
            assert torch.allclose(network(images).logits, expected, atol=1e-9, rtol=1e-9)
        assert set(kept) == {"bcn"} & set(names)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("names", "keys", "reason"),
    [
        (("ws", "compander"), {"learnable": True}, "ws cannot be combined with compander: .*scale"),
        (("sync_bn", "bcn"), {}, "cannot be combined"),
        (("sync_bn", "ghost_bn"), {}, "cannot be combined"),
    ],
)
def test_contradictions_are_refused(names, keys, reason):
    surgeries = {**surgery_of(names[0]), **surgery_of(names[1], **keys)}
    with pytest.raises(ValueError, match=f"(?s)these surgeries cannot work together:.*{reason}"):
        operate(network_of("resnet18_small").backbone, surgeries)


def test_include_and_exclude():
    network = network_of("resnet18_small")
    (lines,) = [operate(network.backbone, surgery_of("ws", include=["layer1.*"], exclude=["*.conv2"]))]
    changed = [line.split()[1].rstrip(":") for line in lines if line.startswith("  changed")]
    assert changed == ["layer1.0.conv1", "layer1.1.conv1"]
    with pytest.raises(ValueError, match="matches no module of this backbone: not in include"):
        operate(network_of("resnet18_small").backbone, surgery_of("ws", include=["stage9.*"]))
