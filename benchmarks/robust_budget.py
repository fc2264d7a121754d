"""What ``budget=fast`` saves of ``budget=standard``, what it misses, and what the evaluation costs beside its passes.

    python -m benchmarks.robust_budget [--images 200] [--epochs 15] [--repeats 2] [--large 32]

The small network of ``attack_parity`` learns the embedded photographs by PGD at about half size; the same random test
photographs are evaluated with both budgets. Prints and keeps accuracies, images forward and backward (of the sequence;
those of the checks beside it), and their ratios.

Bookkeeping is the time of the whole standard evaluation (sequence, checks, tables) over that of the same passes bare:
every pass of the evaluation is noted with its number of images and whether a gradient was taken, and the list is
replayed in its order on the frozen network, the gradient being that of the sum of the logits. So it needs no estimate
from representative batch sizes. Evaluation and replay are timed in turn, by the clock and by the processor time of the
process, which other work on the machine disturbs less.

The small network's passes are about as cheap as passes get, and what comes beside them is large for it. So the same
ratio is taken of a ResNet-20 at 32 px, where no image falls and a fiftieth of the standard sequence's passes is made,
in its proportions (APGD-CE 2 steps, APGD-T and FAB-T 18 towards one target, Square 100 queries).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from benchmarks.attack_parity import SIDE, Ours, Small
from benchmarks.timing import arguments, save
from datamodules.sources.grocery import Grocery
from kernels.batch import Batch
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.pgd import PGD
from lightning_modules.attacks.victim import attacked
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.evaluators.robust_sequence import STANDARD, Budget, attack_of
from lightning_modules.evaluators.robust_trial import Samples, attempted
from lightning_modules.evaluators.robustness import RobustnessEvaluator
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network

EPS, STEPS = "2/255", 5
BATCH = 100
Pass = tuple[int, bool]  # images, and whether the gradient was taken
Row = dict[str, object]
T = TypeVar("T")


def trained(image: Tensor, label: Tensor, epochs: int) -> Ours:
    """A network that has learnt attacked images, mirrored or not."""
    torch.manual_seed(0)
    network, attack = Ours(Small()), PGD(eps=EPS, steps=STEPS, step_size=float(2 / 255 / 4))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    for epoch in range(epochs):
        for rows in torch.randperm(len(image)).split(50):
            shown = image[rows].flip(3) if torch.rand(()) < 0.5 else image[rows]
            with attacked(network) as victim:
                found = attack.search(victim, shown, label[rows], Draw(0, epoch, rows)).image
            optimizer.zero_grad()
            cross_entropy(network(found).class_scores, label[rows]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def evaluated(network: nn.Module, data: EvaluationData, budget: Budget) -> Evaluation:
    """By the evaluator, as ``evaluate.py`` calls it."""
    network_as_given: Any = network
    return RobustnessEvaluator(eps=EPS, budget=budget)(network_as_given, data)


def figures(found: Evaluation) -> dict[str, Any]:
    """Accuracies, what the sequence and the checks cost, and seconds of each stage."""
    table = found.tables["Accuracy after each attack"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    names = ("accuracy", "robust_accuracy", "images", "forwards", "backwards", "violated_checks")
    beside = {f"{key} of the checks": rows[-1][key] for key in ("forwards", "backwards")}
    return {name: found.metrics[name] for name in names} | beside | {"stages": rows}


def bookkeeping(network: nn.Module, evaluation: Callable[[], T], image: Tensor, repeats: int) -> tuple[T, Row]:
    """What came of the first evaluation, and how much longer evaluations take than their passes."""
    ratios: dict[str, list[float]] = {"clock": [], "processor": []}
    seconds: dict[str, list[float]] = {"evaluation": [], "passes": []}
    for number in range(repeats):
        start = _now()
        (found, passes), middle = noted(network, evaluation), _now()
        replay(network, image, passes)
        for name, begun, between, ended in zip(ratios, start, middle, _now(), strict=True):
            ratios[name].append(round((between - begun) / (ended - between), 3))
            if name == "processor":
                seconds["evaluation"].append(round(between - begun, 1))
                seconds["passes"].append(round(ended - between, 1))
        if not number:
            first, images = found, [sum(c for c, _ in passes), sum(c for c, gradient in passes if gradient)]
    return first, {
        "images forward": images[0],
        "images backward": images[1],
        "images of a pass, mean": round(images[0] / len(passes), 1),
        "processor seconds": seconds,
        "over the passes": {name: [round(statistics.median(found), 3), *found] for name, found in ratios.items()},
    }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def noted(network: nn.Module, evaluation: Callable[[], T]) -> tuple[T, list[Pass]]:
    """What comes of an evaluation, and every forward during it."""
    seen: list[Pass] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append((len(given[0]), given[0].requires_grad and torch.is_grad_enabled()))

    handle = network.register_forward_pre_hook(note)
    try:
        return evaluation(), seen
    finally:
        handle.remove()


def replay(network: nn.Module, image: Tensor, passes: list[Pass]) -> None:
    """The same passes bare."""
    for count, gradient in passes:
        with torch.set_grad_enabled(gradient):
            shown = image[:count].detach().requires_grad_(gradient)
            scores = network(shown).class_scores
            if gradient:
                torch.autograd.grad(scores.sum(), shown)


def a_fiftieth(network: nn.Module, batch: Batch) -> None:
    """The standard sequence in proportion, on images that all withstand it."""
    with attacked(network) as victim:
        for number, stage in enumerate(STANDARD, 1):
            keys: dict[str, int | str | None] = {"queries": 100}
            if stage.gradients:
                keys = {"steps": 18, "targets": 1} if "targets" in stage.keys else {"steps": 2}
            attack = attack_of(replace(stage, keys=keys), 1e-7, "linf", 10)
            samples = Samples(batch.image, batch.label, Draw(0, number, batch.index))
            if int(attempted(attack, "linf", victim, samples).fell.sum()):
                raise SystemExit(f"an image fell to {stage.name}: choose another seed")


def large_network(count: int) -> tuple[nn.Module, Batch]:
    """A ResNet-20 that has learnt nothing, and images with what it predicts for them."""
    torch.manual_seed(0)
    body = create_backbone(name="cifar_resnet20")
    network = Network(body, Linear(body.num_features, 10)).eval().requires_grad_(False)
    image = torch.rand(count, 3, 32, 32)
    return network, Batch(image, network(image).class_scores.argmax(1), torch.arange(count))


def main() -> None:
    options = arguments(images=200, epochs=15, repeats=2, large=32)
    (train, train_label), (test, test_label), classes = Grocery(seed=0).arrays()
    train, test = (adaptive_avg_pool2d(images / 255, SIDE) for images in (train, test))
    network = trained(train, train_label, options.epochs)
    index = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: options.images]
    chosen = Batch(test[index], test_label[index], index)
    batches = [chosen.map(lambda t, at=at: t[at]) for at in torch.arange(len(chosen)).split(BATCH)]
    data = EvaluationData(batches, classes)
    large, withstanding = large_network(options.large)
    _, of_large = bookkeeping(large, lambda: a_fiftieth(large, withstanding), withstanding.image, options.repeats)
    print(of_large, flush=True)
    fast = figures(evaluated(network, data, "fast"))
    whole, of_small = bookkeeping(
        network, lambda: evaluated(network, data, "standard"), chosen.image[:BATCH], options.repeats
    )
    standard = figures(whole)
    save(
        "robust_budget",
        {
            "eps": EPS,
            "epochs": options.epochs,
            "training": f"PGD, {STEPS} steps",
            "standard": standard,
            "fast": fast,
            "fast / standard": {
                "robust accuracy, points more": round(100 * (fast["robust_accuracy"] - standard["robust_accuracy"]), 2),
                "forwards": round(fast["forwards"] / standard["forwards"], 4),
                "backwards": round(fast["backwards"] / standard["backwards"], 4),
                "forwards with the checks": round(_all(fast, "forwards") / _all(standard, "forwards"), 4),
                "backwards with the checks": round(_all(fast, "backwards") / _all(standard, "backwards"), 4),
            },
            "bookkeeping": of_small,
            "bookkeeping, ResNet-20": of_large,
        },
    )


def _all(figures: dict[str, Any], key: str) -> float:
    return float(figures[key] + figures[f"{key} of the checks"])


if __name__ == "__main__":
    main()
