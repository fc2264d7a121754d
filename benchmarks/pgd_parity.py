"""What PGD with 20 steps costs beside that of torchattacks, and beside the passes that both have to make.

    pip install --no-deps torchattacks requests
    python -m benchmarks.pgd_parity [--images 100] [--epochs 25] [--repeats 11]

Network, photographs and L-inf ball are those of ``attack_parity``; steps are eps / 4 long. First one batch that is
classified right: PGD of both, the 20 passes forward and backward alone, and our APGD-CE of 20 steps, another attack,
which lets fallen samples go. Then PGD-20 accuracy of all test photographs in batches of 100, handed to both as they
are: our validation attacks only those that are classified right. Prints and keeps survivors, accuracies, median seconds
in turn, and the median of the ratios to torchattacks with its quartiles.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.attack_parity import EPS, Ours, Small, found_by, torchattacks, victim_of
from benchmarks.timing import arguments, interleave, ratios, save
from kernels.batch import Batch
from lightning_modules.attacks.apgd_ce import APGDCE
from lightning_modules.attacks.pgd import PGD
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.robustness import RobustValidation

STEPS = 20
BATCH = 100


def main() -> None:
    options = arguments(images=100, epochs=25, repeats=11)
    theirs = torchattacks()
    network, test, test_label, chosen = victim_of(options.epochs, options.images)
    save(
        "pgd_parity",
        {
            "steps": STEPS,
            "eps": EPS["linf"],
            "one batch": pgd(theirs, network, test[chosen], test_label[chosen], options.repeats),
            "all test photographs": pgd_accuracy(theirs, network, test, test_label, options.repeats),
        },
    )


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
        "ours": lambda: found_by(ours, network, image, label),
        "our apgd_ce": lambda: found_by(until_fallen, network, image, label),
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
    victim: Any = Ours(network).eval()
    found: dict[str, float] = {}

    def ours() -> None:
        metrics = validation(victim, EvaluationData(batches, classes, brief=True)).metrics
        found["ours"] = round(100 * metrics["pgd_accuracy"], 2)

    def other() -> None:
        right = [(network(attack(b.image, b.label)).argmax(1) == b.label).sum() for b in batches]
        found["torchattacks"] = round(100 * int(torch.stack(right).sum()) / len(image), 2)

    times = interleave({"torchattacks": other, "ours": ours}, max(repeats // 3, 3), warmup=1)
    return {"images": len(image), "pgd accuracy": found} | _compared(times)


def _compared(times: dict[str, list[float]]) -> dict[str, object]:
    medians = {name: round(statistics.median(seconds), 4) for name, seconds in times.items()}
    return {"median seconds": medians, "over torchattacks": ratios(times, "torchattacks")}


if __name__ == "__main__":
    main()
