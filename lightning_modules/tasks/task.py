"""The task: networks, one optimizer, the shared step, the sums of an epoch, and validation by evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch import LightningModule
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from kernels.batch import Batch, Output, Step
from kernels.ranges import RangeChecked
from lightning_modules.average import Average
from lightning_modules.distributed import average_over_processes, check_every_parameter_used, total_over_processes
from lightning_modules.evaluators.base import EvaluationData, Evaluator
from lightning_modules.finite.guard import FiniteGuard
from lightning_modules.frozen import Frozen
from lightning_modules.gradients.base import sum_terms
from lightning_modules.network import Network
from lightning_modules.norm_statistics import statistics_in_training
from lightning_modules.part import Context, TrainingData
from lightning_modules.parts import Parts
from lightning_modules.state.random_state import random_state
from lightning_modules.step import StepResult, run_step
from lightning_modules.tasks.epoch_sums import EpochSums
from lightning_modules.tasks.observer import Observer
from lightning_modules.tasks.update_batch import batch_norms_of, check_pieces, check_position, check_size
from lightning_modules.tasks.validation import Validation


class Task(RangeChecked, LightningModule):
    """Trains a network with composed parts by manual optimization; a training step is exactly one update.

    ``observers`` are told of every update and every epoch (see ``observer.Observer``).

    A task measures nothing by itself: evaluators validate (see ``validation.Validation``). Training counts correct
    answers where the network gives class scores. Subclasses are presets: they say which evaluators validate where the
    run names none.

    Args:
        network: normalization, backbone and head.
        parts: loss, regularizers and the optional seats.
        make_optimizer: ``(network, parts) -> optimizer``.
        make_schedule: ``(optimizer, total_updates) -> timm scheduler``.
        context: facts about the run, given to every part.
        validation: evaluators by name; None for those of the preset.
        select: metrics of theirs that decide which epoch is the best.
        micro_batches: pieces an update batch is run in; less memory, same gradient (norm statistics aside).
        clip_norm: largest gradient norm; None for no clipping.
        ema_decay: decay of an exponential moving average of the weights that is evaluated and exported instead of the
            weights; None for none. It warms up as ``1 - update ** (-2/3)`` until it reaches the decay.
        channels_last: memory format of the weights, which convolutions pass on; faster on most hardware.
        compile: run the network through ``torch.compile``; state_dict keys stay as they are.
        nonfinite: what happens where a loss term or the gradient is NaN or infinite, always before the update:
            ``raise`` ends the run, ``skip`` leaves the batch out, ``rollback`` goes back to the newest good checkpoint.
        max_nonfinite: batches left out in a row, or rollbacks to the same checkpoint, after which the run ends all the
            same; None for 3. Only with ``skip`` and ``rollback``.
    """

    def __init__(
        self,
        network: Network,
        parts: Parts,
        make_optimizer: Callable[[nn.Module, nn.Module], Optimizer],
        make_schedule: Callable[[Optimizer, int], Scheduler],
        context: Context,
        validation: Mapping[str, Evaluator] | None = None,
        select: Sequence[str] | None = None,
        *,
        micro_batches: Annotated[int, "x >= 1"] = 1,
        clip_norm: Annotated[float, "x > 0"] | None = None,
        ema_decay: Annotated[float, "0 <= x < 1"] | None = None,
        channels_last: bool = False,
        compile: bool = False,
        nonfinite: Literal["raise", "skip", "rollback"] = "raise",
        max_nonfinite: Annotated[int, "x >= 1"] | None = None,
    ) -> None:
        super().__init__()
        check_pieces(parts, micro_batches)
        if compile and parts.gradient.derives_by_features:
            raise ValueError(
                "these parts cannot work together:\n- gradient cannot be combined with task.compile=true: a compiled "
                "network is one node of the graph, without features between backbone and head by which a term could be "
                "derived; leave task.compile out, or take gradient.scope=backbone"
            )
        self.automatic_optimization = False
        if channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.parts, self.context = network, parts, context
        self.ema_decay, self.ema = ema_decay, Average(network) if ema_decay else None
        if "average" in parts.networks_read:
            parts.networks["average"] = Frozen(_average_of(self.ema), checked=False)
        parts.setup(replace(context, networks=dict(parts.networks.items())))
        self.make_optimizer, self.make_schedule = make_optimizer, make_schedule
        self.micro_batches, self.clip_norm = micro_batches, clip_norm
        self.guard = FiniteGuard(nonfinite, max_nonfinite)
        self.restore_good: Callable[[], int | None] | None = None
        self.failure_directory: Path | None = None
        self.training_data: Callable[[], Iterable[Batch]] | None = None
        self.update = 0
        self.sums = EpochSums()
        self.validation = Validation(self.default_validation() if validation is None else validation, select)
        self.epoch_metrics: dict[str, float] = {}
        self._val_metrics: dict[str, float] = {}
        self.last_loss: Tensor | float | None = None  # of the whole batch, over all processes
        self.observers: list[Observer] = []
        self.schedule: Scheduler
        self._trained: list[nn.Parameter] = []
        self._named: dict[str, nn.Parameter] = {}
        self._forward: Callable[..., Output] = torch.compile(network.__call__) if compile else network.__call__
        self._batch_norms = batch_norms_of(network, parts)
        # The parts' state is kept equal by the parts themselves; broadcasting it every step would cost and mix counts.
        self._ddp_params_and_buffers_to_ignore = {f"parts.{name}" for name, _ in parts.named_buffers()}
        self._optimizer: Any = None
        self._world, self.epoch, self.batches_done = 1, 0, 0
        self._shared_statistics: list[Tensor] = []
        self._averaged: list[nn.Parameter] = []
        self.between_updates = False  # only then is the state one that can be saved
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stop_agreed = False
        self.random_before_validation: dict[str, Any] | None = None

    @classmethod
    def default_validation(cls) -> dict[str, Evaluator]:
        """The evaluators of this preset."""
        return {}

    def measure_training(self, outputs: dict[str, Output], batch: Batch) -> dict[str, Tensor]:
        """What to sum over the epoch, by name: ``[B]`` on the device.

        Correct answers in the view that the loss predicts from; against the larger share where labels are mixed.
        """
        logits_BC = outputs[self.parts.loss.prediction].logits
        if logits_BC is None:
            return {}
        label_B = batch.label if batch.label.ndim == 1 else batch.label.argmax(1)
        return {"accuracy": logits_BC.argmax(1) == label_B}

    def __setattr__(self, name: str, value: Any) -> None:
        """Numbers are set directly: a step sets a dozen, and the way a module takes is ten times longer."""
        if type(value) in (int, float, bool):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def evaluated_network(self) -> Network:
        """The network that is validated, tested and exported: the average where there is one."""
        return self.network if self.ema is None else self.ema.module  # type: ignore[return-value]

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer(self.network, self.parts)
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.schedule = self.make_schedule(optimizer, self.context.max_epochs * self.context.steps_per_epoch)
        return optimizer

    def setup(self, stage: str) -> None:
        for observer in self.observers:
            observer.begin(self)

    def on_train_start(self) -> None:
        # Read once instead of every step: these properties walk through the trainer. The optimizer itself, without
        # Lightning's wrapper: that counts steps, and the count here is ``self.update``; bf16 needs no scaling.
        self._optimizer, self._world = self.optimizers(use_pl_optimizer=False), self.trainer.world_size
        trained = {id(p) for p in self._trained}
        self._named = {name: p for name, p in self.named_parameters() if id(p) in trained}
        self.guard.prepare(self.network, self.parts)
        if self._world > 1:
            self._prepare_processes()
        for observer in self.observers:
            observer.train_begins(self)
        if self.update == 0 and self.training_data is not None:  # after a resume, what it gave is in the state
            self.parts.prepare(TrainingData(self.training_data, self.network, self.device))
        self.sums.go_on()
        self.between_updates = True

    def _prepare_processes(self) -> None:
        """Norm statistics stay equal everywhere, and dropout draws other masks in each process."""
        self._shared_statistics = statistics_in_training(self.network, self.parts)
        if not getattr(self.trainer.model, "find_unused_parameters", False):
            self._averaged = [p for p in self.parameters() if p.requires_grad]
        if self.global_rank > 0:
            torch.manual_seed(self.context.seed + self.global_rank)

    def on_train_epoch_start(self) -> None:
        """Not called in an epoch that training resumes in the middle of."""
        self.epoch, self.batches_done = self.current_epoch, 0
        self.sums.begin()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.sums.tick()
        self.batches_done, self.between_updates = batch_idx + 1, True
        if self._world == 1:  # several agreed on it during the step
            self.stop_agreed = self.stop_requested()
        for observer in self.observers:
            observer.update_done(self)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update on one batch."""
        self.between_updates = False
        check_position(batch, self.epoch, batch_idx)
        self.check_size(len(batch))
        optimizer, world = self._optimizer, self._world
        self.schedule.step_update(self.update)
        step = Step(
            epoch=self.epoch,
            update=self.update,
            seed=self.context.seed,
            network=self.network,
            forward=self._forward,
            batch_size=self._samples_of_update(batch, batch_idx),
        )
        optimizer.zero_grad()
        self.guard.before()
        result = run_step(
            self.parts,
            batch,
            step,
            micro_batches=self.micro_batches,
            backward=lambda loss: self.manual_backward(loss * world if world > 1 else loss),
            parameters=self._named,
        )
        if any(p.grad is None for p in self._averaged):
            check_every_parameter_used(self, self.update)
        norms = self._gradient_norms()
        verdict = self.guard.check(result, norms, self.stop_requested())
        self.stop_agreed = verdict.stop
        if not verdict.ok:
            self.guard.act(
                verdict, result, step, self.parts, restore_good=self.restore_good, directory=self.failure_directory
            )
            self.update = step.update + 1  # schedule and position move on, also where a checkpoint was loaded
            return
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self.clip_norm, norms[0])
        optimizer.step()
        self.update += 1
        if self._shared_statistics:
            average_over_processes(self._shared_statistics)
        self.last_loss = sum_terms(result.terms) if verdict.loss is None else verdict.loss
        self._commit(result, step)

    def _samples_of_update(self, batch: Batch, batch_idx: int) -> int:
        """Over all processes, whose shares of a batch may differ by one sample."""
        last = batch_idx == self.context.steps_per_epoch - 1
        size = self.context.last_batch_size if last else self.context.batch_size
        return len(batch) * self._world if size is None or self._world == 1 else size

    def _gradient_norms(self) -> Sequence[Tensor]:
        """The norm of each gradient; where clipping was asked for, that of the whole gradient."""
        norms = torch._foreach_norm([p.grad for p in self._trained if p.grad is not None])
        return norms if self.clip_norm is None else [torch.linalg.vector_norm(torch.stack(norms))]

    def check_size(self, samples: int) -> None:
        """Refuse a batch, a process's share of one, that cannot be cut or that batch norm cannot learn from."""
        check_size(samples, self.micro_batches, self._batch_norms)

    def _commit(self, result: StepResult, step: Step) -> None:
        """State and sums, only after a successful update."""
        whole = result.whole()
        self.parts.commit(whole, step)
        if self.ema is not None and self.ema_decay is not None:
            self.ema.update(self.network, min(self.ema_decay, 1.0 - self.update ** (-2 / 3)))
        self.sums.add(result.terms, self.measure_training(whole.outputs, whole.batch), step.batch_size)

    def agree_on_stop(self) -> bool:
        """Whether a stop was requested in any process; every process calls this together."""
        self.stop_agreed = self.stop_requested()
        if self._world > 1:
            self.stop_agreed = bool(total_over_processes(torch.tensor(float(self.stop_agreed), device=self.device)))
        return self.stop_agreed

    @property
    def validation_is_due(self) -> bool:
        """Whether this epoch ends with a validation."""
        every = self.trainer.check_val_every_n_epoch or 1
        return (self.epoch + 1) % every == 0 and self.trainer.enable_validation

    def on_validation_start(self) -> None:
        self.random_before_validation = random_state(self.device)
        data = EvaluationData(
            batches=(),
            classes=self.context.val_classes,
            train=self.training_data,
            is_query=self.context.val_is_query,
            brief=True,
        )
        self.validation.begin(self.evaluated_network.eval(), data)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation.add(batch, self.evaluated_network(batch.image))
        for observer in self.observers:
            observer.validating(self)

    def on_validation_epoch_end(self) -> None:
        self.random_before_validation = None
        self._val_metrics = self.validation.columns()
        self.parts.validated(self.evaluated_network, self._val_metrics)
        self.log_dict(self._val_metrics)  # for callbacks of others; already global

    def _sum_over_processes(self, vector: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(vector, reduce_op="sum")  # type: ignore[return-value]

    def on_train_epoch_end(self) -> None:
        """Turn the sums of the epoch into one row of metrics."""
        self.between_updates = False
        updates = self.context.steps_per_epoch - self.guard.lost_in_epoch
        measured = self.sums.row(updates, self._sum_over_processes)
        self.epoch_metrics = {
            "epoch": self.current_epoch,
            "update": self.update,
            "seconds": self.sums.seconds,
            "images_per_second": self.sums.samples / max(self.sums.seconds, 1e-9),
            "lr": max(group["lr"] for group in self.optimizers().param_groups),  # type: ignore[union-attr]
            **{f"train/{name}": value for name, value in measured.items()},
            **self._val_metrics,
            **self.parts.end_epoch(),
            **self.guard.end_epoch(),
        }
        self._val_metrics = {}  # an epoch without validation has no metrics of an earlier one
        for observer in self.observers:
            observer.epoch_done(self)
        self.between_updates = True


def _average_of(ema: Average | None) -> nn.Module:
    if ema is None:
        raise ValueError("a part reads a view of the network 'average', and there is none; set task.ema_decay")
    return ema.module
