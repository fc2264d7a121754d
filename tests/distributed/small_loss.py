"""Small-loss selection on two networks that teach each other, as parts and as a plain loop.

Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama. "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy
Labels". NeurIPS 2018, arXiv 1804.06872: each network learns from the samples with the smallest losses of the other one.
"""

import torch
import torch.distributed
from torch import nn
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import Backbone
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network
from lightning_modules.optimization import create_optimizer
from lightning_modules.part import Context, Loss, Reweighting
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

CLASSES, SAMPLES, SIZE, KEPT, UPDATES = 3, 40, 9, 5, 10  # shares of 4 and 5


class Convolution(nn.Module):
    """A backbone in timm's interface with so many channels."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.num_features = self.head_hidden_size = channels

    def forward_features(self, image):
        return self.conv(image).tanh()

    def forward_head(self, feature_map, pre_logits=False):
        return feature_map.mean((2, 3))


class Both(Loss):
    views = ("main", "peer/main")

    def forward(self, outputs, batch, step):
        logits = {"main": outputs["main"].logits, "peer": outputs["peer/main"].logits}
        return {name: cross_entropy(value, batch.label, reduction="none") for name, value in logits.items()}


class SmallLoss(Reweighting):
    needs_all_losses = True

    def forward(self, losses, outputs, batch, step):
        chosen = {name: torch.zeros_like(loss_B) for name, loss_B in losses.items()}
        for name, other in (("main", "peer"), ("peer", "main")):
            chosen[name][losses[other].topk(KEPT, largest=False).indices] = 1 / KEPT
        return chosen


def networks():
    """Two different ones."""
    made = []
    for seed, channels in ((0, 4), (1, 6)):
        torch.manual_seed(seed)
        backbone = Backbone(Convolution(channels), "tiny", channels, 3, (0.5,) * 3, (0.25,) * 3)
        made.append(Network(backbone, Linear(channels, CLASSES)).double())
    return made


def batch_of(update):
    generator = torch.Generator().manual_seed(update)
    index = torch.randperm(SAMPLES, generator=generator)[:SIZE]
    image = torch.rand(SAMPLES, 3, 5, 5, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return Batch(image[index], index % CLASSES, index)


def trained(rank, world, micro_batches):
    """State of both networks after ten updates through the seats; each process has its share of every batch."""
    main, peer = networks()
    parts = Parts(Both(), reweighting=SmallLoss(), networks={"peer": peer})
    parts.setup(Context(CLASSES, SAMPLES, 1, UPDATES, main, networks={"peer": peer}))
    optimizer = create_optimizer(main, parts, name="sgd", lr=0.5, momentum=0.9, weight_decay=1e-3)
    every = [p for group in optimizer.param_groups for p in group["params"]]
    for update in range(UPDATES):
        batch = batch_of(update).map(lambda rows: rows[rank * SIZE // world : (rank + 1) * SIZE // world])
        step = Step(0, update, 0, main, main, SIZE)
        optimizer.zero_grad()
        result = run_step(parts, batch, step, micro_batches=micro_batches)
        for p in every if world > 1 else ():
            torch.distributed.all_reduce(p.grad)
        optimizer.step()
        parts.commit(result.whole(), step)
    return {**main.state_dict(), **{f"peer.{name}": value for name, value in peer.state_dict().items()}}


def expected():
    """The same, written from the paper."""
    main, peer = networks()
    groups = [
        {"params": [p for n in (main, peer) for p in n.parameters() if (p.ndim > 1) is matrix], "weight_decay": decay}
        for matrix, decay in ((True, 1e-3), (False, 0.0))
    ]
    optimizer = torch.optim.SGD(groups, 0.5, momentum=0.9, nesterov=True)
    for update in range(UPDATES):
        batch = batch_of(update)
        losses = [cross_entropy(n(batch.image).logits, batch.label, reduction="none") for n in (main, peer)]
        small = [loss.argsort()[:KEPT] for loss in losses]
        optimizer.zero_grad()
        (losses[0][small[1]].mean() + losses[1][small[0]].mean()).backward()
        optimizer.step()
    return {**main.state_dict(), **{f"peer.{name}": value for name, value in peer.state_dict().items()}}
