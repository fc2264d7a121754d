"""What SAM costs: its step over twice the plain one.

    python -m benchmarks.sam [--backbone resnet18_small] [--batch 32] [--repeats 15]

Prints and keeps ratios against the plain step, interleaved: A/A (the plain step against itself), SAM, ASAM. The bar of
2.03 is tighter than the noise of whole steps, so what is added to two passes (the ascent, a copy of the weights, and
putting them back) is timed alone as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.gradients.asam import ASAM
from lightning_modules.gradients.base import Gradient
from lightning_modules.gradients.sam import SAM
from lightning_modules.gradients.sum import Sum
from lightning_modules.heads.linear import Linear
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.step import run_step

CLASSES = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def one_step(backbone: str, batch: Batch, gradient: Gradient) -> Callable[[], None]:
    """A training step of a fresh network with this gradient."""
    torch.manual_seed(0)
    body = create_backbone(name=backbone)
    network = Network(body, Linear(body.num_features, CLASSES)).to(DEVICE)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the recipes do
    parts = Parts(CrossEntropy(), gradient=gradient).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    named = dict(network.named_parameters())

    def run() -> None:
        optimizer.zero_grad()
        run_step(parts, batch, Step(0, 0, 0, network, network, len(batch)), parameters=named)
        optimizer.step()

    return run


def added_operations(backbone: str, gradient: SAM) -> Callable[[], None]:
    """Everything of a SAM step that is neither pass."""
    body = create_backbone(name=backbone)
    network = Network(body, Linear(body.num_features, CLASSES)).to(DEVICE)
    moved = dict(network.named_parameters())
    weights: list[torch.Tensor] = list(moved.values())
    for weight in weights:
        weight.grad = torch.ones_like(weight)

    @torch.no_grad()
    def run() -> None:
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, gradient.ascent(moved))  # type: ignore[arg-type]
        torch._foreach_copy_(weights, before)

    return run


def main() -> None:
    options = arguments(backbone="resnet18_small", batch=32, repeats=15)
    keep_freed_memory()  # as the trainer does
    index = torch.arange(options.batch)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index).to(DEVICE)
    makers = {"plain": Sum(), "plain again": Sum(), "sam": SAM(), "asam": ASAM()}
    steps = {name: one_step(options.backbone, batch, gradient) for name, gradient in makers.items()}
    times = interleave(steps, options.repeats)
    plain = statistics.median(times["plain"])
    alone = {name: added_operations(options.backbone, one) for name, one in (("sam", SAM()), ("asam", ASAM()))}
    added = {name: statistics.median(seconds) for name, seconds in interleave(alone, 4 * options.repeats).items()}
    save(
        f"sam_{options.backbone}_{options.batch}",
        {
            "backbone": options.backbone,
            "batch": options.batch,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * plain, 3),
            "ratio_to_plain (median, quartiles)": ratios(times, "plain"),
            "added_over_step": {name: round(seconds / plain, 4) for name, seconds in added.items()},
        },
    )


if __name__ == "__main__":
    main()
