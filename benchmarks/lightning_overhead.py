"""What our training loop costs beside a bare Lightning trainer, and the share of an epoch outside the mathematics.

    python -m benchmarks.lightning_overhead [--steps 300] [--repeats 7] [--data FOLDER]

1. Milliseconds per step of a recipe with its defaults (metrics, bar, checkpoint, validation off the clock) minus those
   of a bare ``Trainer`` with automatic optimization, on the same tiny network and the same batches.
2. With ``--data``: one real epoch of CIFAR-10 with a small net; share of the time that is neither forward, backward
   nor optimizer step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy

import lightning_modules.tasks.task as task_module
import recipes
from benchmarks.timing import save
from kernels.batch import Batch
from recipes.processes.stop import StopRequest
from recipes.running.keeper import Keeper
from recipes.running.recorder import Recorder

BATCH = 4


class Bare(LightningModule):
    """The same network and optimizer, nothing else."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.network: nn.Module = task.network
        self.make_optimizer = task.make_optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return cross_entropy(self.network(batch.image).logits, batch.label)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.network)


class Clock:
    """Seconds between the first and the last training batch, as a callback sees them."""

    def __init__(self) -> None:
        from lightning.pytorch import Callback

        clock = self

        class Ends(Callback):
            def on_train_start(self, *_: Any) -> None:
                clock.start = time.perf_counter()

            def on_train_batch_end(self, *_: Any) -> None:
                clock.stop = time.perf_counter()

        self.callback, self.start, self.stop = Ends(), 0.0, 0.0


def batches(steps: int) -> Any:
    image, label = torch.rand(BATCH, 3, 8, 8), torch.arange(BATCH) % 40
    same = [Batch(image, label, torch.arange(BATCH)) for _ in range(steps)]
    return torch.utils.data.DataLoader(same, batch_size=None)  # type: ignore[arg-type]


def build(*words: str) -> Any:
    small = ["backbone=conv4", "backbone.kwargs.channels=[2]", "trainer.accelerator=cpu"]
    return recipes.build("grocery_baseline", [*small, "trainer.max_epochs=1", *words])


def ours(steps: int) -> float:
    """Seconds per step of the recipe."""
    from pathlib import Path

    run, clock = build(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        run.trainer.callbacks.append(clock.callback)
        Path(folder, "checkpoints").mkdir()
        recorder, stop = Recorder(Path(folder)), StopRequest()
        run.task.observers += [recorder, Keeper(recorder, run._facts(), stop)]
        run.task.stop_requested = lambda: stop.reason is not None
        run.trainer.fit(run.task, train_dataloaders=batches(steps))
        run.task.observers[-1].wait()
    return (clock.stop - clock.start) / steps


def bare(steps: int) -> float:
    """Seconds per step of a bare trainer."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[clock.callback],
    )
    trainer.fit(Bare(build().task), train_dataloaders=batches(steps))
    return (clock.stop - clock.start) / steps


def share_outside(data: str) -> dict[str, float]:
    """One epoch of CIFAR-10 with CIFAR ResNet-20: the share of time outside forward, backward and step."""
    spent = 0.0

    def timed(function: Any) -> Any:
        def call(*args: Any, **keys: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            result = function(*args, **keys)
            spent += time.perf_counter() - start
            return result

        return call

    words = [f"data.root={data}", "data.verify=false", "trainer.max_epochs=1", "backbone=cifar_resnet20"]
    run, clock = recipes.build("cifar_baseline", [*words, "data.limit_train=12800"]), Clock()
    run.trainer.callbacks.append(clock.callback)
    original = task_module.run_step
    task_module.run_step = timed(original)  # forward and backward
    make_optimizer = run.task.make_optimizer

    def optimizer(*args: Any) -> Any:
        made = make_optimizer(*args)
        made.step = timed(made.step)
        return made

    run.task.make_optimizer = optimizer
    run.trainer.fit(run.task, train_dataloaders=run.data.train_dataloader())
    task_module.run_step = original
    total = clock.stop - clock.start
    return {"epoch_seconds": round(total, 2), "share_outside": round(1 - spent / total, 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", default=None)
    options = parser.parse_args()
    ours(20), bare(20)
    pairs = [(ours(options.steps), bare(options.steps), bare(options.steps)) for _ in range(options.repeats)]
    rows: dict[str, object] = {
        "steps": options.steps,
        "repeats": options.repeats,
        "bare_ms": round(1e3 * statistics.median(b for _, b, _ in pairs), 3),
        "ours_minus_bare_ms": round(1e3 * statistics.median(a - b for a, b, _ in pairs), 3),
        "bare_minus_bare_ms": round(1e3 * statistics.median(c - b for _, b, c in pairs), 3),
    }
    if options.data:
        rows["cifar10_epoch"] = share_outside(options.data)
    save("lightning_overhead", rows)


if __name__ == "__main__":
    main()
