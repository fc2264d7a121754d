"""The classification task: one network, one optimizer, the shared step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from kernels.batch import Batch, Output, Step
from lightning_modules.finite import check_finite
from lightning_modules.meters import Meter
from lightning_modules.network import Network
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.precision import at_least_float32
from lightning_modules.step import StepResult, run_step


class Classification(LightningModule):
    """Trains a network with composed parts by manual optimization; a training step is exactly one update.

    Args:
        network: normalization, backbone and head.
        parts: loss, regularizers and the optional seats.
        make_optimizer: ``(network, parts) -> optimizer``.
        make_schedule: ``(optimizer, total_updates) -> timm scheduler``.
        context: facts about the run, given to every part.
        micro_batches: pieces an update batch is run in; less memory, same gradient (norm statistics aside).
        clip_norm: largest gradient norm; None for no clipping.
        ema_decay: decay of an exponential moving average of the weights that is evaluated and exported instead of the
            weights; None for none. It warms up as ``1 - (1 + update) ** (-2/3)`` until it reaches the decay.
        channels_last: memory format of the weights, which convolutions pass on; faster on most hardware.
        compile: run the network through ``torch.compile``; state_dict keys stay as they are.
    """

    def __init__(
        self,
        network: Network,
        parts: Parts,
        make_optimizer: Callable[[nn.Module, nn.Module], Optimizer],
        make_schedule: Callable[[Optimizer, int], Scheduler],
        context: Context,
        *,
        micro_batches: int = 1,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm}; leave it out for no clipping")
        self.automatic_optimization = False
        if channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.parts, self.context = network, parts, context
        parts.setup(context)
        self.ema = ModelEmaV3(network, decay=ema_decay, use_warmup=True).requires_grad_(False) if ema_decay else None
        self.make_optimizer, self.make_schedule = make_optimizer, make_schedule
        self.micro_batches, self.clip_norm = micro_batches, clip_norm
        self.update = 0
        self.train_meter, self.val_meter = Meter(), Meter()
        self.epoch_metrics: dict[str, float] = {}
        self._val_metrics: dict[str, float] = {}
        self.last_loss: Tensor | None = None
        self.schedule: Scheduler
        self._forward: Callable[..., Output] = torch.compile(network.__call__) if compile else network.__call__
        self._batch_norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        # The parts' state is kept equal by the parts themselves; broadcasting it every step would cost and mix counts.
        state = {f"parts.{name}" for name, _ in parts.named_buffers()}
        self._ddp_params_and_buffers_to_ignore = state
        self._samples, self._epoch_start, self._train_seconds = 0, 0.0, 0.0

    @property
    def evaluated_network(self) -> Network:
        """The network that is validated, tested and exported: the average where there is one."""
        return self.network if self.ema is None else self.ema.module  # type: ignore[return-value]

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer(self.network, self.parts)
        self.schedule = self.make_schedule(optimizer, self.context.max_epochs * self.context.steps_per_epoch)
        return optimizer

    def on_train_epoch_start(self) -> None:
        self._samples, self._epoch_start = 0, time.monotonic()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._train_seconds = time.monotonic() - self._epoch_start

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update on one batch."""
        self._check_batch(batch)
        optimizer: Any = self.optimizers()
        self.schedule.step_update(self.update)
        world = self.trainer.world_size
        step = Step(
            epoch=self.current_epoch,
            update=self.update,
            seed=self.context.seed,
            network=self.network,
            forward=self._forward,
            batch_size=len(batch) * world,
        )
        optimizer.zero_grad()
        result = run_step(
            self.parts,
            batch,
            step,
            micro_batches=self.micro_batches,
            backward=lambda loss: self.manual_backward(loss * world if world > 1 else loss),
        )
        norm = None
        if self.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        check_finite(result, norm, step.epoch, step.update)
        optimizer.step()
        self.update += 1
        self._commit(result, step)

    def _check_batch(self, batch: Batch) -> None:
        """The one batch a network with batch norm cannot learn from."""
        if len(batch) // self.micro_batches <= 1 and any(norm.training for norm in self._batch_norms):
            raise ValueError(
                f"a batch of {len(batch)} image(s) in {self.micro_batches} micro-batch(es) leaves batch norm a single "
                "sample, whose variance is undefined; set data.drop_last=true, a larger data.batch_size or fewer "
                "task.micro_batches, or take a backbone without batch norm"
            )

    def _commit(self, result: StepResult, step: Step) -> None:
        """State and sums, only after a successful update."""
        outputs, batch = result.whole()
        self.parts.commit(outputs, batch, step)
        if self.ema is not None:
            self.ema.update(self.network, self.update)
        self.train_meter.add(result.terms)
        self._samples += len(batch)
        self.last_loss = next(iter(result.terms.values()))
        main = outputs.get("main")
        if main is not None and main.logits is not None:
            label_B = batch.label if batch.label.ndim == 1 else batch.label.argmax(1)
            self.train_meter.add({"correct": (main.logits.argmax(1) == label_B).sum()})

    def on_validation_start(self) -> None:
        self.evaluated_network.eval()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits_BC = at_least_float32(self.evaluated_network(batch.image).class_scores)
        self.val_meter.add(
            {
                "loss": cross_entropy(logits_BC, batch.label, reduction="sum"),
                "correct": (logits_BC.argmax(1) == batch.label).sum(),
                "samples": torch.ones_like(batch.label).sum(),
            }
        )

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        sums = self.val_meter.read(self._sum_over_processes)
        samples = sums["samples"]
        self._val_metrics = {"val/loss": sums["loss"] / samples, "val/accuracy": sums["correct"] / samples}
        self.log_dict(self._val_metrics)  # for callbacks of others; already global

    def _sum_over_processes(self, vector: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(vector, reduce_op="sum")  # type: ignore[return-value]

    def on_train_epoch_end(self) -> None:
        """Turn the sums of the epoch into one row of metrics; the only host read of the loop."""
        sums, steps = self.train_meter.read(self._sum_over_processes), self.context.steps_per_epoch
        samples = self._samples * self.trainer.world_size
        correct = sums.pop("correct", None)
        terms = {f"train/{name}": value / steps for name, value in sums.items()}
        self.epoch_metrics = {
            "epoch": self.current_epoch,
            "update": self.update,
            "seconds": self._train_seconds,
            "images_per_second": samples / max(self._train_seconds, 1e-9),
            "lr": max(group["lr"] for group in self.optimizers().param_groups),  # type: ignore[union-attr]
            "train/loss": sum(terms.values()),
            **({} if correct is None else {"train/accuracy": correct / samples}),
            **terms,
            **self._val_metrics,
            **self.parts.end_epoch(),
        }
        self._val_metrics = {}  # an epoch without validation has no metrics of an earlier one
