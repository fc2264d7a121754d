"""The probe forward: refuses networks that cannot take the data's images, and leaves no trace."""

import random

import pytest
import torch
from tiny import TINY

import recipes
from kernels.raise_site import raised_here
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network
from recipes.building import probe
from recipes.building.probe import check_takes


def network(name, **keys):
    backbone = create_backbone(name=name, **keys)
    return Network(backbone, Linear(backbone.num_features, 3))


def devices(net):
    """Where each forward of a network finds its image."""
    seen = []
    net.register_forward_pre_hook(lambda module, given: seen.append(given[0].device.type))
    return seen


@pytest.mark.parametrize("computed", [False, True])
def test_it_leaves_no_trace(computed, monkeypatch):
    net = network("resnet10t", freeze_norm=True, kwargs={"drop_rate": 0.5, "drop_path_rate": 0.5})
    net.head.train(False)
    before = {key: (value, value.clone()) for key, value in net.state_dict(keep_vars=True).items()}
    modes = [module.training for module in net.modules()]
    states = torch.get_rng_state(), random.getstate()
    seen = devices(net)
    if computed:
        monkeypatch.setattr(probe, "functional_call", lambda *args: 1 / 0)
    check_takes(net, 3, 32)
    assert seen == (["cpu"] if computed else ["meta"])
    after = net.state_dict(keep_vars=True)
    assert all(after[key] is value and torch.equal(value, copy) for key, (value, copy) in before.items())
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert all(p.grad is None for p in net.parameters())


def test_a_run_with_and_without_it_has_the_same_weights(monkeypatch, tmp_path):
    words = [*TINY, "recipe=grocery_saf", "backbone=test_efficientnet", "data.limit_train=24", "stop_after=2"]
    found = []
    for number in range(2):
        if number:
            monkeypatch.setattr("recipes.building.assemble.check_takes", lambda *args: None)
        run = recipes.build(overrides=[*words, f"output={tmp_path}", f"name=r{number}"])
        with pytest.raises(RuntimeError, match="stop_after"):
            run.run()
        found.append(run.task.network.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_model_that_takes_a_size_is_told_its_key():
    with pytest.raises(
        ValueError, match=r"vit_tiny_patch16_224 cannot run on .* 48x48 .*; set backbone.kwargs.img_size=48$"
    ):
        check_takes(network("vit_tiny_patch16_224"), 3, 48)
    with pytest.raises(ValueError, match="set backbone.kwargs.img_size=48 instead of 96"):
        check_takes(network("vit_tiny_patch16_224", kwargs={"img_size": 96}), 3, 48)
    check_takes(network("vit_tiny_patch16_224", kwargs={"img_size": 48}), 3, 48)


def test_a_model_that_takes_none_needs_other_images():
    with pytest.raises(
        ValueError, match=r"conv4 cannot run on this data's images of 8x8 .*; choose another backbone, or"
    ):
        check_takes(network("conv4"), 3, 8)


def test_channels_name_the_key_and_the_number():
    with pytest.raises(
        ValueError, match=r"backbone.in_channels=1, and .* have 3 channel\(s\); set backbone.in_channels=3"
    ):
        check_takes(network("conv4", in_channels=1), 3, 32)


def test_another_network_than_the_one_in_training_is_named_by_its_key():
    with pytest.raises(
        ValueError, match=r"teacher: conv4 takes images of 1 channel\(s\), .* have 3; choose another tea"
    ):
        check_takes(network("conv4", in_channels=1), 3, 32, key="teacher")
    with pytest.raises(ValueError, match=r"peer conv4 cannot run on .* 8x8 .*; choose another peer, or images"):
        check_takes(network("conv4"), 3, 8, key="peer")


def test_what_explains_itself_is_not_explained_again():
    net = network("resnet10t", kwargs={"global_pool": ""})
    with pytest.raises(ValueError, match="leave global_pool out of backbone.kwargs") as caught:
        check_takes(net, 3, 32)
    assert raised_here(caught.value) and "choose another backbone" not in str(caught.value)
