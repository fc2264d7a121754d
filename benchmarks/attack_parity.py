"""Robust accuracy under our attacks of AutoAttack and under those of torchattacks, at equal settings.

    pip install --no-deps torchattacks requests
    python -m benchmarks.attack_parity [--images 200] [--fab 20] [--square 1000] [--epochs 25]

A small network learns the embedded photographs at about half size; test photographs that it classifies right are
attacked, in single precision. FAB and Square are shortened alike for both. Prints and keeps how many images survive
each attack, and its seconds.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from benchmarks.timing import arguments, save
from datamodules.sources.grocery import Grocery
from kernels.batch import Output
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.apgd_dlr import APGDDLR
from lightning_modules.attacks.base import BallAttack, Draw
from lightning_modules.attacks.fab import FAB
from lightning_modules.attacks.square import Square
from lightning_modules.attacks.victim import attacked

EPS = {"linf": 1.5 / 255, "l2": 0.15}
SIDE = 25  # their Square in L2 fails on sides that are not about five tiles (24)
THEIR_NORM = {"linf": "Linf", "l2": "L2"}


class Small(nn.Module):
    """Three convolutions; logits of the 40 classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.layers = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16 * 64, 40))

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.layers((image - 0.5) / 0.25)
        return scores


class Ours(nn.Module):
    """The same network, as our attacks are given one."""

    def __init__(self, network: Small) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        return Output(logits=self.network(image))


def trained(image: Tensor, label: Tensor, epochs: int) -> Small:
    """A network that has learnt these, with mirrored and shifted copies."""
    torch.manual_seed(0)
    network = Small()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(epochs):
        for rows in torch.randperm(len(image)).split(50):
            shown = image[rows].flip(3) if torch.rand(()) < 0.5 else image[rows]
            down, across = torch.randint(-2, 3, (2,)).tolist()
            optimizer.zero_grad()
            cross_entropy(network(shown.roll((down, across), (2, 3))), label[rows], label_smoothing=0.1).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def victim_of(epochs: int, images: int) -> tuple[Small, Tensor, Tensor, Tensor]:
    """A trained network, the test photographs with their labels, and which of those that are right are attacked."""
    (train, train_label), (test, test_label), _ = Grocery(seed=0).arrays()
    train, test = (adaptive_avg_pool2d(images / 255, SIDE) for images in (train, test))
    network = trained(train, train_label, epochs)
    right = (network(test).argmax(1) == test_label).nonzero().flatten()
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    return network, test, test_label, right[order[:images]]


def torchattacks() -> Any:
    """The package, or how to get it."""
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        raise SystemExit(
            f"this compares with torchattacks: pip install --no-deps torchattacks requests ({error})"
        ) from error


def pairs(theirs: Any, network: Small, norm: Any, fab: int, square: int) -> dict[str, tuple[BallAttack, Any]]:
    """Our attack and theirs by name; FAB and Square of so many steps and queries."""
    eps = EPS[norm]
    shared = {"norm": THEIR_NORM[norm], "eps": eps, "seed": 0}
    return {
        "apgd_ce": (APGDCE(eps=eps, norm=norm), theirs.APGD(network, steps=100, loss="ce", **shared)),
        "apgd_dlr": (
            APGDDLR(eps=eps, norm=norm, targets=None),
            theirs.APGD(network, steps=100, loss="dlr", **shared),
        ),
        "apgd_t": (APGDDLR(eps=eps, norm=norm), theirs.APGDT(network, steps=100, n_classes=10, **shared)),
        "fab_t": (
            FAB(eps=eps, norm=norm, steps=fab),
            theirs.FAB(network, steps=fab, multi_targeted=True, n_classes=10, **shared),
        ),
        "square": (
            Square(eps=eps, norm=norm, queries=square),
            theirs.Square(network, n_queries=square, resc_schedule=False, **shared),
        ),
    }


def main() -> None:
    options = arguments(images=200, fab=20, square=1000, epochs=25)
    theirs = torchattacks()
    network, test, test_label, chosen = victim_of(options.epochs, options.images)
    image, label = test[chosen], test_label[chosen]
    rows: dict[str, object] = {
        "images": len(chosen),
        "test accuracy": round(100 * float((network(test).argmax(1) == test_label).float().mean()), 1),
        "eps": EPS,
        "fab steps": options.fab,
        "square queries": options.square,
    }
    for norm in EPS:
        for name, (our_attack, their_attack) in pairs(theirs, network, norm, options.fab, options.square).items():
            ours = _measured(lambda attack=our_attack: found_by(attack, network, image, label), network, label)
            other = _measured(lambda attack=their_attack: attack(image, label), network, label)
            rows[f"{name} {norm}"] = {"ours": ours, "torchattacks": other}
            print(f"{name:10}{norm:6} survive: ours {ours['survive']}, torchattacks {other['survive']}", flush=True)
    save("attack_parity", rows)


def found_by(attack: BallAttack, network: Small, image: Tensor, label: Tensor) -> Tensor:
    """What one of our attacks finds."""
    with attacked(Ours(network)) as victim:
        return attack.search(victim, image, label, Draw(0, 0, torch.arange(len(image)))).image


def _measured(attack: Callable[[], Tensor], network: Small, label: Tensor) -> dict[str, float]:
    start = time.perf_counter()
    found = attack()
    seconds = time.perf_counter() - start
    return {"survive": int((network(found).argmax(1) == label).sum()), "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
