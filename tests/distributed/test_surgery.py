"""Surgeries in two processes: what sees one weight or one sample is exact, and statistics can be those of all."""

import pytest
import torch
from processes import saved

from kernels.batch import Batch, Step
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.step import run_step
from recipes.building.make import build_network

BACKBONE = {"_target_": "lightning_modules.backbones.timm_backbone.create_backbone"}
HEAD = {"_target_": "lightning_modules.heads.linear.Linear"}
SIZE, CLASSES = 6, 3
PLACE = "lightning_modules.surgery"
#: name: (backbone, surgery). Group norm where the surgery itself sees no batch.
CASES = {
    "ws": ("test_efficientnet_gn", {"_target_": f"{PLACE}.weight_standardization.WeightStandardization"}),
    "compander": ("test_efficientnet_gn", {"_target_": f"{PLACE}.weight_compander.WeightCompander", "learnable": True}),
    "tract": ("test_efficientnet_gn", {"_target_": f"{PLACE}.tract.TrAct", "gram": "global"}),
    "bcn": (
        "test_efficientnet",
        {"_target_": f"{PLACE}.batch_channel_norm.BatchChannelNorm", "estimate": True, "all_reduce": True, "groups": 4},
    ),
}


def update(name, rank, world):
    """Gradients of one update, summed over the processes."""
    backbone, surgery = CASES[name]
    torch.manual_seed(0)
    network, _ = build_network({**BACKBONE, "name": backbone}, {name: surgery}, HEAD, CLASSES)
    network.double().train()
    parts = Parts(CrossEntropy(), head=network.head)
    parts.setup(Context(CLASSES, 40, 5, 5, network))
    generator = torch.Generator().manual_seed(1)
    image, label = torch.rand(SIZE, 3, 32, 32, generator=generator, dtype=torch.float64), torch.arange(SIZE) % CLASSES
    mine = slice(rank * SIZE // world, (rank + 1) * SIZE // world)
    batch = Batch(image[mine], label[mine], torch.arange(SIZE)[mine])
    step = Step(0, 0, 0, network, network, SIZE)
    run_step(parts, batch, step)
    found = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    if world > 1:
        for gradient in found.values():
            torch.distributed.all_reduce(gradient)
    return found


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    return saved(update, list(CASES), tmp_path_factory.mktemp("surgery"))


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_are_one(in_two, name):
    one = update(name, 0, 1)
    assert len(one) > 10 and any(bool(gradient.any()) for gradient in one.values())
    for two in in_two[name]:
        assert two.keys() == one.keys()
        for key, gradient in one.items():
            torch.testing.assert_close(two[key], gradient, rtol=1e-8, atol=1e-11, msg=key)
