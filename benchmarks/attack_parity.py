"""Robust accuracy under our attacks of AutoAttack and under those of torchattacks, at equal settings.

    pip install --no-deps torchattacks requests
    python -m benchmarks.attack_parity [--images 200] [--fab 20] [--square 1000] [--epochs 25] [--repeats 15]

A small network learns the embedded photographs at about half size; test photographs that it classifies right are
attacked, in single precision. FAB and Square are shortened alike for both. Prints and keeps how many images survive
each attack, and its seconds.

PGD with 20 steps of eps / 4 has no more to do than 20 passes forward and backward, so its time is measured in turn with
theirs and with these passes alone; beside it, what it saves that APGD lets fallen samples go, and PGD-20 accuracy of
all test photographs, where our validation attacks only those that are classified right.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from benchmarks.timing import arguments, interleave, ratios, save
from datamodules.sources.grocery import Grocery
from kernels.batch import Batch, Output
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.apgd_dlr import APGDDLR
from lightning_modules.attacks.base import BallAttack, Draw
from lightning_modules.attacks.fab import FAB
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.square import Square
from lightning_modules.attacks.victim import attacked
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.robustness import RobustValidation

EPS = {"linf": 1.5 / 255, "l2": 0.15}
SIDE = 25  # their Square in L2 fails on sides that are not about five tiles (24)
THEIR_NORM = {"linf": "Linf", "l2": "L2"}
STEPS = 20  # of PGD, where it is timed
BATCH = 100


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
    options = arguments(images=200, fab=20, square=1000, epochs=25, repeats=15)
    try:
        theirs = importlib.import_module("torchattacks")
    except ImportError as error:
        raise SystemExit(
            f"this compares with torchattacks: pip install --no-deps torchattacks requests ({error})"
        ) from error
    (train, train_label), (test, test_label), _ = Grocery(seed=0).arrays()
    train, test = (adaptive_avg_pool2d(images / 255, SIDE) for images in (train, test))
    network = trained(train, train_label, options.epochs)
    right = (network(test).argmax(1) == test_label).nonzero().flatten()
    chosen = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(0))[: options.images]]
    image, label = test[chosen], test_label[chosen]
    rows: dict[str, object] = {
        "images": len(chosen),
        "test accuracy": round(100 * len(right) / len(test), 1),
        "eps": EPS,
        "fab steps": options.fab,
        "square queries": options.square,
    }
    for norm in EPS:
        for name, (our_attack, their_attack) in pairs(theirs, network, norm, options.fab, options.square).items():
            ours = _measured(lambda attack=our_attack: _found(attack, network, image, label), network, label)
            other = _measured(lambda attack=their_attack: attack(image, label), network, label)
            rows[f"{name} {norm}"] = {"ours": ours, "torchattacks": other}
            print(f"{name:10}{norm:6} survive: ours {ours['survive']}, torchattacks {other['survive']}", flush=True)
    rows[f"pgd {STEPS} linf"] = pgd(theirs, network, image[:BATCH], label[:BATCH], options.repeats)
    rows[f"pgd {STEPS} linf, all test photographs"] = pgd_accuracy(theirs, network, test, test_label, options.repeats)
    save("attack_parity", rows)


def pgd(theirs: Any, network: Small, image: Tensor, label: Tensor, repeats: int) -> dict[str, object]:
    """One batch that is classified right: survivors, and seconds in turn."""
    eps = EPS["linf"]
    ours, until_fallen = PGD(eps=eps, steps=STEPS, step_size=eps / 4), APGDCE(eps=eps, steps=STEPS)
    theirs_pgd = theirs.PGD(network, eps=eps, alpha=eps / 4, steps=STEPS)

    def passes() -> None:
        for _ in range(STEPS):
            leaf = image.detach().requires_grad_(True)
            torch.autograd.grad(cross_entropy(network(leaf), label, reduction="sum"), leaf)

    attacks: dict[str, Callable[[], Tensor]] = {
        "torchattacks": lambda: theirs_pgd(image, label),
        "ours": lambda: _found(ours, network, image, label),
        "our apgd_ce": lambda: _found(until_fallen, network, image, label),
    }
    torch.manual_seed(0)
    survive = {name: int((network(attack()).argmax(1) == label).sum()) for name, attack in attacks.items()}
    again = {"torchattacks again": attacks["torchattacks"], "the passes alone": passes}
    times = interleave({**attacks, **again}, repeats)
    return {"images": len(image), "survive": survive} | _compared(times)


def pgd_accuracy(theirs: Any, network: Small, image: Tensor, label: Tensor, repeats: int) -> dict[str, object]:
    """The whole test part, given to both as it is."""
    eps, everything = EPS["linf"], Batch(image, label, torch.arange(len(image)))
    batches = [everything.map(lambda t, at=at: t[at]) for at in everything.index.split(BATCH)]
    classes = tuple(map(str, range(int(label.max()) + 1)))
    validation, attack = RobustValidation(eps=eps, steps=STEPS), theirs.PGD(network, eps, eps / 4, STEPS)
    found: dict[str, float] = {}

    def ours() -> None:
        metrics = validation(Ours(network), EvaluationData(batches, classes, brief=True)).metrics  # type: ignore[arg-type]
        found["ours"] = round(100 * metrics["pgd_accuracy"], 2)

    def other() -> None:
        right = [(network(attack(b.image, b.label)).argmax(1) == b.label).sum() for b in batches]
        found["torchattacks"] = round(100 * int(torch.stack(right).sum()) / len(image), 2)

    times = interleave({"torchattacks": other, "ours": ours}, max(repeats // 3, 3), warmup=1)
    return {"images": len(image), "pgd accuracy": found} | _compared(times)


def _compared(times: dict[str, list[float]]) -> dict[str, object]:
    medians = {name: round(statistics.median(seconds), 4) for name, seconds in times.items()}
    return {"median seconds": medians, "over torchattacks": ratios(times, "torchattacks")}


def _found(attack: BallAttack, network: Small, image: Tensor, label: Tensor) -> Tensor:
    with attacked(Ours(network)) as victim:
        return attack.search(victim, image, label, Draw(0, 0, torch.arange(len(image)))).image


def _measured(attack: Callable[[], Tensor], network: Small, label: Tensor) -> dict[str, float]:
    start = time.perf_counter()
    found = attack()
    seconds = time.perf_counter() - start
    return {"survive": int((network(found).argmax(1) == label).sum()), "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
