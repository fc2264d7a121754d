"""A linear network whose robust accuracy is known in closed form, and attacks that do as they are told."""

import torch
from torch import nn

from kernels.batch import Batch, Output
from lightning_modules.attacks.base import BallAttack, Found
from lightning_modules.evaluators import robust_sequence
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.robust_sequence import Stage

IMAGES, SIZE = 60, 3


class Linear(nn.Module):
    """``z = W (x - 1/2)``, so that the border goes through the middle of the cube."""

    def __init__(self, classes=2, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, 3 * SIZE * SIZE, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def logits(self, image):
        return (image.flatten(1) - 0.5) @ self.weight.T

    def forward(self, image):
        return Output(logits=self.logits(image))

    def distance(self, image, label, order):
        """``[B]`` to the nearest border in the norm whose dual is ``order``; negative on the wrong side."""
        scores = self.logits(image).detach()
        found = torch.full((len(image),), float("inf"), dtype=torch.float64)
        for i, own in enumerate(label.tolist()):
            for other in range(len(self.weight)):
                if other != own:
                    across = torch.linalg.vector_norm(self.weight[own] - self.weight[other], order).item()
                    found[i] = min(found[i].item(), (scores[i, own] - scores[i, other]).item() / across)
        return found


def images(network, wrong=0.1, classes=2, count=IMAGES, spread=0.7):
    """Images around the middle, of which a share is labelled wrongly, in one batch."""
    generator = torch.Generator().manual_seed(7)
    image = 0.5 + spread * (torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) - 0.5)
    label = network(image).logits.argmax(1).detach()
    flipped = torch.rand(count, generator=generator) < wrong
    return Batch(image, torch.where(flipped, (label + 1) % classes, label), torch.arange(count) * 3 + 1)


def data(batch, size=IMAGES, classes=2, order=None, brief=False):
    rows = torch.arange(len(batch)) if order is None else order
    batches = [batch.map(lambda t, at=at: t[at]) for at in rows.split(size)]
    return EvaluationData(batches, tuple(f"class {c}" for c in range(classes)), brief=brief)


class Idle(BallAttack):
    """Looks and finds nothing."""

    def __init__(self, *, eps, norm, looks=0, slopes=0, step_size=0.0, steps=0, start="", targets=None, queries=0):
        super().__init__(eps=eps, norm=norm)
        self.looks, self.slopes = looks, slopes

    def search(self, victim, image, label, draw):
        for _ in range(self.looks):
            victim.logits(image)
        for _ in range(self.slopes):
            victim.gradient(image, lambda logits: logits.sum(1))
        return Found(image)


class Corner(Idle):
    """Knows the linear network of two classes, and goes straight to the worst corner."""

    network = None

    def search(self, victim, image, label, draw):
        super().search(victim, image, label, draw)
        across = (self.network.weight[1] - self.network.weight[0]).detach().sign().view(1, *image.shape[1:])
        towards = torch.where(label == 0, 1.0, -1.0).view(-1, 1, 1, 1)
        return Found((image + self.eps * towards * across).clamp(0, 1))


class HalfWay(Corner):
    """As ``Corner`` in a ball of half the radius."""

    def __init__(self, **keys):
        super().__init__(**keys)
        self.eps = self.eps / 2


class Lost(Corner):
    """Finds its way in small balls only."""

    def search(self, victim, image, label, draw):
        return super().search(victim, image, label, draw) if self.eps <= 8 / 255 else Found(image)


class Outside(Corner):
    """Goes twice as far as it may."""

    def search(self, victim, image, label, draw):
        far = Corner(eps=2 * self.eps, norm=self.norm)
        return far.search(victim, image, label, draw)


class Mirror(Idle):
    """The other side of the border, whatever the radius is."""

    def search(self, victim, image, label, draw):
        return Found(1 - image)


class Stray(Corner):
    """Gives an image that is no number."""

    def search(self, victim, image, label, draw):
        return Found(image * float("nan"))


def install(monkeypatch, network, fast=(), standard=()):
    """Sequences of the attacks of this file, (name, class, keys) each, and Square that finds nothing."""
    Corner.network = network
    told = {one.__name__: one for one in (Idle, Corner, HalfWay, Lost, Outside, Mirror, Stray)}
    real = robust_sequence.attack_class
    monkeypatch.setattr(
        robust_sequence, "attack_class", lambda name: Idle if name == "Square" else told.get(name) or real(name)
    )
    for budget, stages in (("fast", fast), ("standard", standard)):
        made = tuple(Stage(name, kind, keys, gradients=name != "Square") for name, kind, keys in stages)
        monkeypatch.setitem(robust_sequence.SEQUENCES, budget, made)
