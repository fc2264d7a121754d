"""What the finite guard costs: whole steps beside an A/A ratio, and the added operations alone over the step.

    python -m benchmarks.finite_guard [--backbone cifar_resnet20] [--batch 128] [--repeats 15]

The step without a guard has neither gradient norms nor a check. On a CPU the difference between whole steps is smaller
than their noise, so what the guard adds to a step that goes well is timed alone too: norms, one sum, one host read, and
with ``skip`` the copy of the buffers. On a GPU that is the time until the host has read the verdict of an idle device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import arguments, interleave, ratios, save
from kernels.batch import Batch, Step
from lightning_modules.backbones.timm_backbone import create_backbone
from lightning_modules.finite.guard import FiniteGuard
from lightning_modules.heads.linear import Linear
from lightning_modules.host_memory import keep_freed_memory
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.network import Network
from lightning_modules.parts import Parts
from lightning_modules.step import StepResult, run_step

CLASSES = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Training:
    """A training step of a fresh network, with a guard or without one."""

    def __init__(self, backbone: str, batch: Batch, guard: FiniteGuard | None) -> None:
        torch.manual_seed(0)
        body = create_backbone(name=backbone)
        network: Any = Network(body, Linear(body.num_features, CLASSES)).to(DEVICE)
        self.network = network.to(memory_format=torch.channels_last)  # as the recipes do
        self.batch, self.guard, self.parts = batch, guard, Parts(CrossEntropy())
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, momentum=0.9)
        self.result = StepResult()
        if guard is not None:
            guard.prepare(self.network, self.parts)

    def step(self) -> None:
        """One update."""
        self.optimizer.zero_grad()
        if self.guard is not None:
            self.guard.before()
        step = Step(0, 0, 0, self.network, self.network, len(self.batch))
        self.result = run_step(self.parts, self.batch, step)
        if self.guard is not None:
            self.check()
        self.optimizer.step()

    def check(self) -> None:
        """What comes between gradient and update."""
        assert self.guard is not None
        norms = torch._foreach_norm([p.grad for p in self.network.parameters()])
        assert self.guard.check(self.result, norms).ok

    def added(self) -> None:
        """All that the guard adds to a step, alone."""
        assert self.guard is not None
        self.guard.before()
        self.check()


def main() -> None:
    options = arguments(backbone="cifar_resnet20", batch=128, repeats=15)
    keep_freed_memory()  # as the trainer does
    index = torch.arange(options.batch)
    batch = Batch(torch.rand(options.batch, 3, 32, 32), index % CLASSES, index).to(DEVICE)
    guards = {"plain": None, "plain again": None, "raise": FiniteGuard("raise"), "skip": FiniteGuard("skip")}
    trainings = {name: Training(options.backbone, batch, guard) for name, guard in guards.items()}
    steps: dict[str, Callable[[], object]] = {name: training.step for name, training in trainings.items()}
    times = interleave(steps, options.repeats)
    alone = interleave({name: trainings[name].added for name in ("raise", "skip")}, 200, warmup=20)
    plain = statistics.median(times["plain"])
    added = {name: statistics.median(seconds) for name, seconds in alone.items()}
    save(
        f"finite_guard_{options.backbone}",
        {
            "backbone": options.backbone,
            "batch": options.batch,
            "repeats": options.repeats,
            "plain_step_ms": round(1e3 * plain, 3),
            "ratio_to_plain (median, quartiles)": ratios(times, "plain"),
            "added_operations_ms": {name: round(1e3 * seconds, 4) for name, seconds in added.items()},
            "added_over_step": {name: round(seconds / plain, 5) for name, seconds in added.items()},
        },
    )


if __name__ == "__main__":
    main()
