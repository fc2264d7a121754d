"""What SAM costs: its step over twice the plain one.

    python -m benchmarks.sam [--backbone resnet18_small] [--batch 32] [--repeats 15]

Prints and keeps ratios against the plain step, interleaved: A/A (the plain step against itself), SAM, ASAM.
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


def main() -> None:
    options = arguments(backbone="resnet18_small", batch=32, repeats=15)
    keep_freed_memory()  # as the trainer does
    index = torch.arange(options.batch)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index).to(DEVICE)
    makers = {"plain": Sum(), "plain again": Sum(), "sam": SAM(), "asam": ASAM()}
    steps = {name: one_step(options.backbone, batch, gradient) for name, gradient in makers.items()}
    times = interleave(steps, options.repeats)
    save(
        f"sam_{options.backbone}",
        {
            "backbone": options.backbone,
            "batch": options.batch,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * statistics.median(times["plain"]), 3),
            "ratio_to_plain (median, quartiles)": ratios(times, "plain"),
        },
    )


if __name__ == "__main__":
    main()
