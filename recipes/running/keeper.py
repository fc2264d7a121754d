"""Keeps checkpoints while a run trains, loads the one it continues from, and ends it where a stop was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_modules.distributed import gather_objects
from lightning_modules.state.restart import start_at
from lightning_modules.state.training_state import load_modules, load_rest, process_state, shared_state
from lightning_modules.tasks.observer import Observer
from lightning_modules.tasks.task import Task
from recipes.checkpoints.form import check_resumable
from recipes.checkpoints.load import CheckpointStore, load_checkpoint
from recipes.processes.stop import AGAIN, StopRequest
from recipes.running.going_on import fitting
from recipes.running.recorder import Recorder

Content = dict[str, Any]
STOP_AFTER = "stop_after"


class Keeper(Observer):
    """``last`` after every epoch, every ``save_every`` updates and when the run is stopped; ``best`` by validation.

    Works in every process of a run: each has a share of the state, the first writes.

    Args:
        recorder: of the run's rows; only the first process has one.
        facts: what every checkpoint holds besides weights: configuration text, classes, preprocessing, ...
        stop: requests to stop.
        content: the checkpoint to continue from; None for a start, and in every process but the first.
        path: where it was read.
        save_every: updates between two checkpoints inside an epoch; None for none.
        stop_after: updates after which the run stops by itself; None for never.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        facts: Content,
        stop: StopRequest,
        content: Content | None = None,
        path: Path | None = None,
        save_every: int | None = None,
        stop_after: int | None = None,
    ) -> None:
        self.recorder, self.facts, self.stop = recorder, facts, stop
        self.content, self.path = content, path
        self.save_every, self.stop_after = save_every, stop_after
        self._task: Task | None = None
        self.store = CheckpointStore(recorder.directory / "checkpoints") if recorder else None

    def begin(self, task: Task) -> None:
        """Load weights and parts, and put loops and loader where the checkpoint stands."""
        self._task = task
        path = task.trainer.strategy.broadcast(self.path)
        if path is None:
            return
        self.content = self.content or load_checkpoint(path, check_resumable)
        epoch, batches = self.content["position"]
        with fitting(path):
            load_modules(task, *self._states(task))
        task.epoch, task.batches_done = epoch, batches
        start_at(task.trainer, epoch, batches, task.context.steps_per_epoch)
        task.trainer.datamodule.set_position(epoch, batches)  # type: ignore[attr-defined]

    def train_begins(self, task: Task) -> None:
        """Load the rest, the random generators last."""
        if self.content is not None:
            with fitting(self.path):
                load_rest(task, *self._states(task))
            self.content = None  # its tensors live in the task now
        self.stop.listen()
        self.stop.training = True

    def update_done(self, task: Task) -> None:
        if self.stop_after is not None and task.update >= self.stop_after and self.stop.reason is None:
            self.stop.request(STOP_AFTER, AGAIN)
        due = self.save_every is not None and task.update % self.save_every == 0
        stopping = task.stop_agreed or self.stop.reason == STOP_AFTER
        if not due and not stopping:
            return
        if task.batches_done == task.context.steps_per_epoch and not task.validation_is_due:
            return  # the epoch is over in a moment
        self.save(task)
        if stopping:
            self._end(task)

    def validating(self, task: Task) -> None:
        """The position saved is that before validation, which is repeated."""
        if task.agree_on_stop():
            self.save(task)
            self._end(task)

    def epoch_done(self, task: Task) -> None:
        task.epoch, task.batches_done = task.epoch + 1, 0
        if self.recorder is not None and self.store is not None and self.recorder.is_best(task):
            row = self.recorder.rows[-1]
            self.store.save("best", {**self._about(task), "metrics": row, "update": row["update"]})
            self.store.wait()  # ``last`` must not name a best that is not there
        self.save(task)
        if task.agree_on_stop():
            self._end(task)

    def save(self, task: Task) -> None:
        """Write ``last``; every process takes part."""
        if self.stop.reason is not None:
            self.stop.children_may_end()
        own = gather_objects(process_state(task))
        if self.store is None or self.recorder is None:
            return
        content = {
            **self._about(task),
            "position": [task.epoch, task.batches_done],
            "update": task.update,
            "metrics": self.recorder.rows[-1] if self.recorder.rows else {},
            "training": shared_state(task),
            "processes": own,
            "record": self.recorder.state(),
        }
        self.store.save("last", content)

    def restore_good(self) -> int | None:
        """Weights, averages, parts and optimizer of the newest checkpoint; counters and data go on where they are.

        Returns:
            The update it is from; None where there is none yet.
        """
        task = self._task
        assert task is not None
        found = None if self.store is None else self.store.newest("last", form=check_resumable)
        path = task.trainer.strategy.broadcast(found[1] if found else None)
        if path is None:
            return None
        content = found[0] if found else load_checkpoint(path, check_resumable)
        update = task.update
        load_modules(task, content["training"], content["processes"][task.global_rank])
        for optimizer, state in zip(task.trainer.optimizers, content["training"]["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        task.update = update
        return int(content["update"])

    def wait(self) -> None:
        """Until everything is on disk."""
        if self.store is not None:
            self.store.wait()

    def _about(self, task: Task) -> Content:
        return {**self.facts, "network": task.evaluated_network.state_dict()}

    def _states(self, task: Task) -> tuple[Content, Content]:
        assert self.content is not None
        return self.content["training"], self.content["processes"][task.global_rank]

    def _end(self, task: Task) -> None:
        self.wait()
        reasons = gather_objects((self.stop.reason, self.stop.exit_code))  # also lets nobody leave before all is saved
        reason, exit_code = next(pair for pair in reasons if pair[0] is not None)
        self.stop.request(reason, exit_code)
        self.stop.raise_if_requested(
            f"saved after update {task.update} ({task.batches_done} batches into epoch {task.epoch})"
            + (f"; python train.py resume={self.recorder.directory} goes on" if self.recorder else "")
        )
