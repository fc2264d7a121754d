"""As strong as torchattacks at equal settings, on a network that needs no training."""

import pytest
import torch
from linear_victims import found_by, images, wrong

from kernels.batch import Batch, Output
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.apgd_dlr import APGDDLR
from lightning_modules.attacks.fab import FAB
from lightning_modules.attacks.square import Square

torchattacks = pytest.importorskip("torchattacks")
EPS = {"linf": 0.015, "l2": 0.1}


class Fixed(torch.nn.Module):
    """One hidden layer and six classes; ``scores`` gives what torchattacks reads."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = torch.nn.Parameter(torch.randn(108, 16, generator=generator))
        self.second = torch.nn.Parameter(torch.randn(16, 6, generator=generator))

    def scores(self, image):
        return ((image - 0.5).flatten(1) @ self.first).tanh() @ self.second

    def forward(self, image):
        return Output(logits=self.scores(image))


class Theirs(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network.scores(image)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", "apgd_t", "fab", "square"])
def test_no_more_images_survive_than_under_torchattacks(name, norm):
    network, image, eps = Fixed(), images(150, size=6, dtype=torch.float32), EPS[norm]
    label = network.scores(image).detach().argmax(1)
    shared = {"eps": eps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": 0}
    ours, theirs = {
        "apgd_ce": lambda: (APGDCE(steps=30), torchattacks.APGD(Theirs(network), steps=30, loss="ce", **shared)),
        "apgd_dlr": lambda: (
            APGDDLR(steps=30, targets=None),
            torchattacks.APGD(Theirs(network), steps=30, loss="dlr", **shared),
        ),
        "apgd_t": lambda: (
            APGDDLR(steps=30, targets=5),
            torchattacks.APGDT(Theirs(network), steps=30, n_classes=6, **shared),
        ),
        "fab": lambda: (
            FAB(steps=20, targets=5),
            torchattacks.FAB(Theirs(network), steps=20, multi_targeted=True, n_classes=6, **shared),
        ),
        "square": lambda: (
            Square(queries=300),
            torchattacks.Square(Theirs(network), n_queries=300, resc_schedule=False, **shared),
        ),
    }[name]()
    ours.eps, ours.norm = eps, norm
    batch = Batch(image, label, torch.arange(len(image)))
    survive = int((~wrong(network, found_by(ours, network, batch)[0], label)).sum())
    expected = int((~wrong(network, theirs(image, label), label)).sum())
    assert 30 <= expected <= 130 and survive <= expected + 1
