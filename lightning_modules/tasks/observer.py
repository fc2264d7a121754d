"""Who wants to know how far a task is: the record of a run, its checkpoints, a stop that was asked for."""

from __future__ import annotations

from typing import Any

Task = Any  # lightning_modules.tasks.task.Task, which imports this file


class Observer:
    """Called by the task in every process, between updates only; a method that is not overridden does nothing.

    A Lightning callback would come too early for the row of an epoch, and cost a call at every hook of every step.
    """

    def begin(self, task: Task) -> None:
        """The processes exist; nothing is on its device, and no batch is read. State may be loaded here."""

    def train_begins(self, task: Task) -> None:
        """Everything is on its device; the first batch comes next."""

    def update_done(self, task: Task) -> None:
        """An update is complete; ``task.batches_done`` of the epoch's batches are."""

    def validating(self, task: Task) -> None:
        """A batch of validation is done."""

    def epoch_done(self, task: Task) -> None:
        """An epoch is over and ``task.epoch_metrics`` complete."""
