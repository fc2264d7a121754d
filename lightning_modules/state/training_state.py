"""The state of training between two updates as plain data. Loaded again, the next update is the same bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_modules.state.random_state import random_state, set_random_state

if TYPE_CHECKING:
    from lightning_modules.tasks.task import Task


def shared_state(task: Task) -> dict[str, Any]:
    """What is the same in every process: weights, averages, parts, optimizer and counters."""
    return {
        "task": task.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in task.trainer.optimizers],
        "guard": task.guard.state(),
        "update": task.update,
    }


def process_state(task: Task) -> dict[str, Any]:
    """What each process has of its own: random generators, the sums of the epoch so far, what its parts counted."""
    return {
        "random": task.random_before_validation or random_state(task.device),
        **task.sums.state(),
        "parts": {
            name: module.state_dict()
            for name, module in task.parts.named_modules()
            if getattr(module, "differs_between_processes", False)
        },
    }


def load_modules(task: Task, shared: dict[str, Any], own: dict[str, Any]) -> None:
    """Weights and parts; before anything is wrapped or moved to a device."""
    task.load_state_dict(shared["task"])
    for name, state in own["parts"].items():
        task.parts.get_submodule(name).load_state_dict(state)
    task.guard.load(shared["guard"])
    task.update = shared["update"]


def load_rest(task: Task, shared: dict[str, Any], own: dict[str, Any]) -> None:
    """Optimizer, sums and, last, the random generators; on the device, right before the first update."""
    if (stored := len(shared["optimizers"])) != (now := len(task.trainer.optimizers)):
        raise ValueError(f"there are {now} optimizer(s) now and {stored} in the checkpoint")
    for optimizer, state in zip(task.trainer.optimizers, shared["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    task.sums.load(own, task.device)
    set_random_state(own["random"], task.device)
