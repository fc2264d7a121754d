"""A network small enough to check by hand, and batches for it."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process a core runs the tests; before torch is imported

import pytest
import torch
from torch import nn

from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import Backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network
from lightning_modules.part import Context

sys.path.insert(0, str(Path(__file__).parent))  # for what tests of several folders share
CLASSES, TRAIN = 3, 40
# Processes of tests are forked from one server, which imports this once, whichever test starts it.
multiprocessing.set_forkserver_preload(
    [
        "recipes",
        "recipes.building.assemble",
        "recipes.cli",
        "recipes.report.page",
        "torch.utils.tensorboard",
        "processes",
    ]
)


class TinyBackbone(nn.Module):
    """One convolution, optionally batch norm and dropout, in timm's interface."""

    def __init__(self, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.num_features = self.head_hidden_size = 4

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(image)).tanh()

    def forward_head(self, feature_map: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.dropout(feature_map.mean((2, 3)))


@pytest.fixture
def make_network() -> Callable[..., Network]:
    def make(seed: int = 0, batch_norm: bool = False, dropout: float = 0.0, dtype=torch.float64) -> Network:
        torch.manual_seed(seed)
        model = TinyBackbone(batch_norm, dropout)
        backbone = Backbone(model, "tiny", 4, 3, (0.5,) * 3, (0.25,) * 3)
        return Network(backbone, Linear(4, CLASSES)).to(dtype)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(index: list[int] | torch.Tensor, seed: int = 0, dtype=torch.float64) -> Batch:
        index = torch.as_tensor(index)
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(TRAIN, 3, 5, 5, generator=generator, dtype=dtype)
        return Batch(image=image[index], label=index % CLASSES, index=index)

    return make


@pytest.fixture
def make_step() -> Callable[..., Step]:
    def make(network: Network, epoch: int = 0, update: int = 0, batch_size: int = 8) -> Step:
        return Step(epoch=epoch, update=update, seed=0, network=network, forward=network, batch_size=batch_size)

    return make


@pytest.fixture
def make_context() -> Callable[..., Context]:
    def make(network: Network, max_epochs: int = 5, steps_per_epoch: int = 5) -> Context:
        return Context(
            num_classes=CLASSES,
            num_train=TRAIN,
            max_epochs=max_epochs,
            steps_per_epoch=steps_per_epoch,
            network=network,
        )

    return make
