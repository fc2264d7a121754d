"""Every surgery under torch.compile, and with channels last."""

import copy

import pytest
import torch
import yaml

from recipes.building.make import build_network
from recipes.configuration.catalogue import CONFIGS

BACKBONE = {"_target_": "lightning_modules.backbones.timm_backbone.create_backbone", "name": "test_resnet"}
HEAD = {"_target_": "lightning_modules.heads.linear.Linear"}
#: Synchronized batch norm computes on GPUs only; tests/distributed has what a CPU can show of it.
SURGERIES = sorted({path.stem for path in (CONFIGS / "surgery").glob("*.yaml")} - {"sync_bn"})


@pytest.fixture(params=SURGERIES)
def network(request):
    torch.manual_seed(0)
    node = yaml.safe_load((CONFIGS / "surgery" / f"{request.param}.yaml").read_text())
    node = node if "_target_" in node else node[request.param]
    if "ghost_size" in node:
        node["ghost_size"] = 2
    built, _ = build_network(BACKBONE, {request.param: node}, HEAD, 3)
    return built.double().train()


def images(layout=torch.contiguous_format):
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x.contiguous(memory_format=layout)


def gradients(forward, network, x):
    network.zero_grad()
    logits = forward(x).logits
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


def check(ours, theirs, tolerance=1e-9):
    assert len(ours) == len(theirs) > 20
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=tolerance)


@pytest.mark.slow
def test_compiled(network):
    twin = copy.deepcopy(network)
    plain = gradients(twin, twin, images())
    torch._dynamo.reset()
    compiled = gradients(torch.compile(network, backend="aot_eager"), network, images())
    check(compiled, plain)


def test_channels_last(network):
    twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
    check(gradients(twin, twin, images(torch.channels_last)), gradients(network, network, images()))


def test_it_is_looked_at():
    assert len(SURGERIES) >= 5
